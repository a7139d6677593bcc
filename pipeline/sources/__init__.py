"""Where images and labels come from: class folders and label tables."""
