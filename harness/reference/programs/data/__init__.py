"""From official files to stores, and from stores to the ranks' batches."""
