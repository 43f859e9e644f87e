"""A durable queue of documents to embed, in one SQLite file.

>>> async with AutoBatch(pool, "queue.db") as queue:
...     job = await queue.submit(texts, "nomic-embed-text")
...     print((await queue.wait(job)).as_dict())
...     async for page in queue.results(job):
...         ...

``import aiosollol`` does not load it, as that would load sqlite3.
"""

from aiosollol.autobatch.jobs import JobStatus, QueueStatus
from aiosollol.autobatch.queue import AutoBatch
from aiosollol.autobatch.result_queries import ResultPage

__all__ = ["AutoBatch", "JobStatus", "QueueStatus", "ResultPage"]
