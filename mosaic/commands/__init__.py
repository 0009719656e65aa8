"""The commands of `mosaic`: run, compare, batch, quote, audit, doctor."""
