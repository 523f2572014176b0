"""The model: loading, scoring of answers, attention, the head, and the layout of its batches."""
