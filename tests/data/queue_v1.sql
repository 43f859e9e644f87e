-- A queue as it was written with version 1 of its tables.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
PRAGMA application_id = 1632846417;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE documents (       -- without a vector: queued, or failed
    key INTEGER PRIMARY KEY,   -- job number << 32 | position in the job
    group_id INTEGER NOT NULL,
    due_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    has_failed INTEGER NOT NULL DEFAULT 0,
    crc INTEGER NOT NULL,      -- `checksum` of text
    text BLOB NOT NULL,        -- UTF-8
    error TEXT NOT NULL DEFAULT ''
);
INSERT INTO "documents" VALUES(8589934593,1,101.0,0,1,2154661794,X'626164','BadRequest: refused');
INSERT INTO "documents" VALUES(17179869184,1,106.0,0,0,3007675957,X'7468726565','');
INSERT INTO "documents" VALUES(17179869185,1,106.0,0,0,2803865167,X'666F7572','');
CREATE TABLE expired (         -- jobs that are forgotten, but for the rows of their documents
    number INTEGER PRIMARY KEY
);
CREATE TABLE groups (          -- documents that may stand in one request
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    settings TEXT NOT NULL,    -- JSON, keys sorted
    UNIQUE (model, settings)
);
INSERT INTO "groups" VALUES(1,'nomic-embed-text','{}');
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: keys of documents contain it
    id TEXT NOT NULL UNIQUE,
    group_id INTEGER NOT NULL,
    metadata TEXT NOT NULL,    -- JSON
    total INTEGER NOT NULL,
    queued INTEGER NOT NULL,   -- these four always agree with the rows below
    queued_bytes INTEGER NOT NULL,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    is_cancelled INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,  -- seconds since the epoch, like all times here
    started_at REAL,
    completed_at REAL
);
INSERT INTO "jobs" VALUES(1,'done',1,'{"source": "wiki"}',2,0,0,2,0,0,100.0,102.0,103.0);
INSERT INTO "jobs" VALUES(2,'failed',1,'{}',2,0,0,1,1,0,101.0,102.0,103.0);
INSERT INTO "jobs" VALUES(3,'cancelled',1,'{}',1,0,0,0,0,1,104.0,NULL,105.0);
INSERT INTO "jobs" VALUES(4,'queued',1,'{}',2,2,9,0,0,0,106.0,NULL,NULL);
CREATE TABLE vectors (         -- of the others: a document is in one of these tables, once
    key INTEGER PRIMARY KEY,
    crc INTEGER NOT NULL,
    vector BLOB NOT NULL       -- float32, little-endian
);
INSERT INTO "vectors" VALUES(4294967296,535753418,X'000000000000003F');
INSERT INTO "vectors" VALUES(4294967297,4001745371,X'0000803F0000003F');
INSERT INTO "vectors" VALUES(8589934592,3381833056,X'000000400000003F');
CREATE TABLE worker (          -- one row: who embeds, and how fast
    id INTEGER PRIMARY KEY CHECK (id = 1),
    pid INTEGER,
    rate REAL NOT NULL
);
INSERT INTO "worker" VALUES(1,NULL,4.0);
CREATE INDEX open_jobs ON jobs (group_id, number, queued, queued_bytes) WHERE queued > 0;
CREATE INDEX line ON documents (group_id, due_at, attempts) WHERE has_failed = 0;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('groups',4);
INSERT INTO "sqlite_sequence" VALUES('jobs',4);
COMMIT;
