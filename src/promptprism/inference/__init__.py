"""From a trained method to answers: batches of images, early stopping of templates, one answer explained."""
