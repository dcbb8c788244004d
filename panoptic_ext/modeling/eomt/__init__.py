"""Parts of EoMT."""
