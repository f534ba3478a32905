"""The arrays of a batch: patches, positions, masks, and how samples are packed into rows."""
