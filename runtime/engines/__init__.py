"""What runs a bundle's graph: the catalog of engines, and a file for each library, which is imported when one is opened."""
