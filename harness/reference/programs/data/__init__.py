"""The program `data`: convert datasets to stores, and read batches from stores."""
