"""Settings → what one layer of the onion needs, one file a layer."""
