"""From the softmax up to the product of query and key."""
