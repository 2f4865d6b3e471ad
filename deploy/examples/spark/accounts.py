"""A Spark job on sealed volumes: rows at /data, written once, read back and added up by account in a shuffle.

Usage: accounts.py ROWS. The last line says what was read: `accounts A, rows R, written now` or `..., found`.
"""

import sys
from pathlib import Path

from pyspark.sql import SparkSession, functions

ACCOUNTS = 1000
PLACE = "/data/rows"


def write(spark: SparkSession, rows: int) -> None:
    """Each row has a text that must never be seen on the disk. Compressed, nobody would see it in any case."""
    number = functions.col("id")
    text = functions.concat(functions.lit("what only the tenant may read "), number)
    table = spark.range(rows).select((number % ACCOUNTS).alias("account"), text.alias("text"))
    table.write.option("compression", "none").parquet(PLACE)


def main(rows: int) -> None:
    """Every row crosses the shuffle, with its text: its files lie on the other sealed volume."""
    spark = SparkSession.builder.getOrCreate()
    # Spark writes this file last.
    found = Path(PLACE, "_SUCCESS").exists()
    if not found:
        write(spark, rows)
    table = spark.read.parquet(PLACE).repartition(4, "account")
    accounts = table.groupBy("account").agg(functions.count("*").alias("rows"), functions.max("text"))
    total = accounts.agg(functions.count("*"), functions.sum("rows")).first()
    spark.stop()
    print(f"accounts {total[0]}, rows {total[1]}, {'found' if found else 'written now'}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
