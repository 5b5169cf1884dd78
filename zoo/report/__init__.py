"""What a run leaves behind: result files and maps; tables, pictures and the page made from them."""
