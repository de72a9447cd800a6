"""The collector daemon: XRootD f-stream packets and producers' JSON in, normalised events to the broker's queue.

``python -m gridstead.collector --config FILE``. A parent process holds the UDP socket and nothing else; its worker does
the work (see ``parent``, ``worker``). One SQLite database is the outgoing queue, the table of open files and the
counters (``store``); ``udp`` and ``broker`` are the ways in and out, ``status`` the HTTP page of health and counters.
"""
