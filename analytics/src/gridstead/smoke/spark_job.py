"""The Spark application of the smoke test: reads lines from HDFS, counts words, writes Parquet, and reads it back.

Arguments: the input, and a directory to write to. Writes ``counts`` (Parquet) and ``checked`` (JSON lines of word and
count, read back from the Parquet files).
"""

import sys


def main(source: str, target: str) -> None:
    """Run the application. The smoke test imports this module where there is no Spark, so Spark is imported here."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    spark = SparkSession.builder.appName("gridstead-smoke").getOrCreate()
    words = spark.read.text(source).select(F.explode(F.split("value", " ")).alias("word"))
    words.repartition(4).groupBy("word").count().write.parquet(f"{target}/counts")
    # Each executor's Python takes part, so that a broken environment on a node is seen.
    rows = spark.read.parquet(f"{target}/counts").rdd.map(lambda row: (row[0], int(row[1])))
    spark.createDataFrame(rows, "word string, count long").coalesce(1).write.json(f"{target}/checked")
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
