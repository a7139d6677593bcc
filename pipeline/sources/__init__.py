"""Where images and labels come from: class folders, tables, tars, and datasets of ours."""
