"""What commands write: lines and JSON, progress bars, picture files."""
