"""Panoptic models of Hugging Face's transformers: reading, labels, inputs, targets and losses."""
