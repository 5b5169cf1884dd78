"""What a run leaves behind: result files, tables made from them, pictures."""
