"""Selection methods: a file for each family, and the catalog that lists them all."""
