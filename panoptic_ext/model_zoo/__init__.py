"""Weights from elsewhere. Nothing is imported here: each module says which package it needs."""
