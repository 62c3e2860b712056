-- Schema 3. What users of a served model say of its answers. Never a vote: nobody was shown a rubric, and whoever asked chose the prompt.

CREATE TABLE feedback (
  seq SERIAL_KEY PRIMARY KEY,
  at_ms BIGINT NOT NULL,
  channel TEXT NOT NULL,
  caller TEXT NOT NULL,            -- the account whose token was used
  kind TEXT NOT NULL,              -- thumb, preference
  value DOUBLE PRECISION NOT NULL, -- thumb: 1 up, 0 down; preference: 1 the first is better, 0.5 a tie, 0 the second
  response_a TEXT NOT NULL,
  release_a TEXT NOT NULL,
  arm_a TEXT NOT NULL,             -- stable, canary
  completion_a TEXT NOT NULL,      -- the answer's id and choice
  response_b TEXT,
  release_b TEXT,
  arm_b TEXT,
  completion_b TEXT,
  reason TEXT NOT NULL
);
CREATE INDEX feedback_channel ON feedback(channel, seq);
