"""The parts of two-stage models: conventions, boxes, anchors, neck, proposals, regions, heads, and their skeleton."""
