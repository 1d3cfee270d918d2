"""What programs print or write about their own speed, read as series."""
