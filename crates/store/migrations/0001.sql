-- Schema 1. One text for SQLite and PostgreSQL; `SERIAL_KEY` becomes INTEGER (SQLite's row id) or BIGINT. The store
-- numbers these rows itself, without gaps. Times are milliseconds since 1970; JSON is text. docs/store.md explains it.

CREATE TABLE project (
  id SERIAL_KEY PRIMARY KEY CHECK (id = 1),
  name TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  validation_share DOUBLE PRECISION NOT NULL,
  holdout_share DOUBLE PRECISION NOT NULL,
  policy TEXT NOT NULL
);

CREATE TABLE ledger (
  seq SERIAL_KEY PRIMARY KEY,
  at_ms BIGINT NOT NULL,
  kind TEXT NOT NULL,
  actor TEXT NOT NULL,
  body TEXT NOT NULL,
  prev TEXT NOT NULL,
  hash TEXT NOT NULL
);

CREATE TABLE account (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  password TEXT,
  created_ms BIGINT NOT NULL,
  disabled_ms BIGINT
);
CREATE TABLE account_role (
  account_id TEXT NOT NULL REFERENCES account(id),
  role TEXT NOT NULL,
  granted_by TEXT NOT NULL,
  granted_ms BIGINT NOT NULL,
  PRIMARY KEY (account_id, role)
);
CREATE TABLE invite (
  token_hash TEXT PRIMARY KEY,
  roles TEXT NOT NULL,
  note TEXT NOT NULL,
  created_by TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  expires_ms BIGINT NOT NULL,
  used_by TEXT,
  used_ms BIGINT,
  revoked_ms BIGINT
);
CREATE TABLE login_session (
  token_hash TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES account(id),
  csrf TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  seen_ms BIGINT NOT NULL,
  expires_ms BIGINT NOT NULL
);
CREATE INDEX login_session_account ON login_session(account_id);
CREATE TABLE api_token (
  id TEXT PRIMARY KEY,
  token_hash TEXT NOT NULL UNIQUE,
  account_id TEXT NOT NULL REFERENCES account(id),
  name TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  expires_ms BIGINT,
  revoked_ms BIGINT
);

CREATE TABLE rubric (
  version SERIAL_KEY PRIMARY KEY,
  content TEXT NOT NULL,
  hash TEXT NOT NULL,
  author TEXT NOT NULL,
  note TEXT NOT NULL,
  recalibrate BIGINT NOT NULL,
  created_ms BIGINT NOT NULL
);

CREATE TABLE prompt (
  id TEXT PRIMARY KEY,
  content TEXT NOT NULL,
  category TEXT NOT NULL,
  origin TEXT NOT NULL,
  part TEXT NOT NULL,
  added_ms BIGINT NOT NULL
);
CREATE TABLE response (
  id TEXT PRIMARY KEY,
  prompt_id TEXT NOT NULL REFERENCES prompt(id),
  content TEXT NOT NULL,
  model TEXT NOT NULL,
  model_hash TEXT,
  sampler TEXT,
  sample_index BIGINT,
  origin TEXT NOT NULL,
  added_ms BIGINT NOT NULL
);
CREATE INDEX response_prompt ON response(prompt_id);

-- state: fresh (nobody has been shown it), open (served to someone, wants more), full, held (flagged), closed, gold
-- (for calibration only). `served` counts judgements and live leases, and never exceeds `wanted`.
CREATE TABLE comparison (
  id TEXT PRIMARY KEY,
  prompt_id TEXT NOT NULL REFERENCES prompt(id),
  response_a TEXT NOT NULL REFERENCES response(id),
  response_b TEXT NOT NULL REFERENCES response(id),
  category TEXT NOT NULL,
  contest TEXT NOT NULL,
  a_is_first BIGINT NOT NULL,
  shuffle BIGINT NOT NULL,
  wanted BIGINT NOT NULL,
  served BIGINT NOT NULL,
  state TEXT NOT NULL,
  score DOUBLE PRECISION,
  chosen_by TEXT,
  propensity DOUBLE PRECISION,
  origin TEXT NOT NULL,
  added_ms BIGINT NOT NULL
);
CREATE INDEX comparison_queue ON comparison(state, category, shuffle);
CREATE INDEX comparison_score ON comparison(state, category, score);
CREATE INDEX comparison_prompt ON comparison(prompt_id);
CREATE TABLE category_queue (
  category TEXT PRIMARY KEY,
  fresh BIGINT NOT NULL,
  open BIGINT NOT NULL
);

CREATE TABLE annotator (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  kind TEXT NOT NULL,
  account_id TEXT REFERENCES account(id),
  created_ms BIGINT NOT NULL
);
-- How often an annotator was shown each contest (a pair of models) with its first on the left, less the other way round.
CREATE TABLE side_balance (
  annotator_id TEXT NOT NULL,
  contest TEXT NOT NULL,
  first_left BIGINT NOT NULL,
  PRIMARY KEY (annotator_id, contest)
);
CREATE TABLE category_tally (
  annotator_id TEXT NOT NULL,
  category TEXT NOT NULL,
  served BIGINT NOT NULL,
  PRIMARY KEY (annotator_id, category)
);
CREATE TABLE assignment (
  id SERIAL_KEY PRIMARY KEY,
  annotator_id TEXT NOT NULL REFERENCES annotator(id),
  comparison_id TEXT NOT NULL REFERENCES comparison(id),
  kind TEXT NOT NULL,
  round BIGINT NOT NULL,
  left_response TEXT NOT NULL,
  rubric_version BIGINT NOT NULL,
  state TEXT NOT NULL,
  served_ms BIGINT NOT NULL,
  expires_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX assignment_once ON assignment(annotator_id, comparison_id, kind, round) WHERE state IN ('live', 'voted');
CREATE INDEX assignment_live ON assignment(expires_ms) WHERE state = 'live';
CREATE INDEX assignment_comparison ON assignment(comparison_id);

CREATE TABLE vote (
  seq SERIAL_KEY PRIMARY KEY,
  comparison_id TEXT NOT NULL REFERENCES comparison(id),
  annotator_id TEXT NOT NULL REFERENCES annotator(id),
  kind TEXT NOT NULL,
  left_response TEXT NOT NULL,
  overall TEXT NOT NULL,
  axes TEXT NOT NULL,
  reason TEXT NOT NULL,
  rubric_version BIGINT NOT NULL,
  shown_ms BIGINT,
  answered_ms BIGINT,
  work_ms BIGINT,
  machine BIGINT NOT NULL,
  chosen_by TEXT,
  propensity DOUBLE PRECISION,
  assignment_id BIGINT,
  supersedes BIGINT,
  origin TEXT NOT NULL,
  recorded_ms BIGINT NOT NULL,
  chain TEXT NOT NULL
);
CREATE INDEX vote_comparison ON vote(comparison_id);
CREATE INDEX vote_annotator ON vote(annotator_id, seq);
CREATE UNIQUE INDEX vote_supersedes ON vote(supersedes) WHERE supersedes IS NOT NULL;

CREATE VIEW effective_vote AS
  SELECT v.* FROM vote v
  WHERE v.overall <> 'withdrawn' AND NOT EXISTS (SELECT 1 FROM vote s WHERE s.supersedes = v.seq);

CREATE TABLE calibration (
  comparison_id TEXT PRIMARY KEY REFERENCES comparison(id),
  expected TEXT NOT NULL,
  explanation TEXT NOT NULL,
  active BIGINT NOT NULL,
  added_by TEXT NOT NULL,
  added_ms BIGINT NOT NULL
);

CREATE TABLE adjudication (
  seq SERIAL_KEY PRIMARY KEY,
  comparison_id TEXT NOT NULL REFERENCES comparison(id),
  reviewer TEXT NOT NULL,
  answer TEXT NOT NULL,
  reason TEXT NOT NULL,
  supersedes BIGINT,
  at_ms BIGINT NOT NULL
);
CREATE INDEX adjudication_comparison ON adjudication(comparison_id);

CREATE TABLE dataset (
  name TEXT PRIMARY KEY,
  hash TEXT NOT NULL,
  header TEXT NOT NULL,
  train_rows BIGINT NOT NULL,
  validation_rows BIGINT NOT NULL,
  holdout_rows BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  created_ms BIGINT NOT NULL
);
-- A comparison's judgements in canonical order, as counted when the dataset was frozen. `idx` runs from 0 without gaps.
CREATE TABLE dataset_row (
  dataset TEXT NOT NULL REFERENCES dataset(name),
  idx BIGINT NOT NULL,
  part TEXT NOT NULL,
  comparison_id TEXT NOT NULL,
  prompt_id TEXT NOT NULL,
  response_a TEXT NOT NULL,
  response_b TEXT NOT NULL,
  category TEXT NOT NULL,
  a_votes BIGINT NOT NULL,
  b_votes BIGINT NOT NULL,
  ties BIGINT NOT NULL,
  both_bad BIGINT NOT NULL,
  grade_sum BIGINT NOT NULL,
  adjudicated TEXT,
  probability DOUBLE PRECISION,
  chain TEXT NOT NULL,
  PRIMARY KEY (dataset, idx)
);
