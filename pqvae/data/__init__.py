"""Images of every source, by number, and the batches made of them."""
