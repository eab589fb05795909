"""Data: records and their readers, images, few-shot and base/new splits, views, MiniWorld."""
