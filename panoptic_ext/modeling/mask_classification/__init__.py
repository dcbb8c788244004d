"""Mask classification: targets, points, query masks, losses, matcher and criteria."""
