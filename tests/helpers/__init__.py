"""What tests share: makers of adapters and folders, bad files, a fake model, kills and mutations."""
