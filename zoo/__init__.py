"""Segmentation zoo: one registry of semantic, instance and panoptic models, one table to compare them."""
