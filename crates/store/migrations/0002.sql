-- Schema 2. Texts that events name by hash: policies, evaluations, verdicts, a run's manifest and settings.

CREATE TABLE document (
  hash TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  content TEXT NOT NULL,
  added_ms BIGINT NOT NULL
);
