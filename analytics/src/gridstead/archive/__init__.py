"""The archive: every row of the log as Parquet, each position once, and the record of what is committed.

Layout under the archive's root::

    events/source=<source>/date=<YYYY-MM-DD of end_ms, UTC>/<commit>-<n>.parquet
    commits/<YYYY-MM-DD of the commit, UTC>/<commit>.json     the manifests
    staging/<kind>-<commit>/                                  what is being written; on an object store only a note
    writers/<epoch>-<nonce>                                   one number for each start of a stream
    retention/<events|malformed>-before-<YYYY-MM-DD>          the days that were given up
    locks/<nonce>                                             held by compaction and retention

``<commit>`` is ``<first>-<last>-<epoch>-<nonce>`` (:class:`Token`). Commits are numbered 1, 2, 3…; compaction replaces
the commits first to last by one, in one step: as soon as its manifest is there, theirs no longer count. So names alone
say which files count, and neither a reader nor a writer lists the history or opens a manifest that it does not need.
Rows that are no events are kept under source=malformed, with their date in the log, so that every position is there.

All access is by Hadoop's FileSystem inside the JVM of Spark, thus the same on HDFS, file:// and S3A. On an object
store, where a rename is a copy and nobody is told that a name is taken, nothing is renamed (commits.py); writers and
maintenance agree by listing one another's claims, so listings have to be consistent, as those of S3 are.
"""
