"""Combine the prediction files of two models into panoptic results."""
