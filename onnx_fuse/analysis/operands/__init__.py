"""From a product up to where query, key or value come from: rotation, norm, projection."""
