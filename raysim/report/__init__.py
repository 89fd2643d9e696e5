"""A run as one page that opens anywhere: figures, tables and settings in a single HTML file."""
