"""From token rows to batches: their order, streams, loaders, and the tensors of a batch."""
