"""The serving layer: whole documents by key, which are the streaming state and what readers see at once.

``documents`` is the arithmetic, ``control`` the one record that says how far the documents go, ``transactions`` the
writer of streamed changes, ``merge`` the writer of batch results, ``elastic`` and ``indices`` Elasticsearch.
The protocol as a whole is docs/decisions/0007-serving-layer.md.
"""
