//! What a check found, as a line for people or an object for programs.

use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::output::{Out, Tone, printable};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Skip,
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    group: &'static str,
    check: &'static str,
    #[serde(rename = "result")]
    verdict: Verdict,
    seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn new(
        verdict: Verdict,
        group: &'static str,
        check: &'static str,
        seen: impl Into<String>,
    ) -> Self {
        Self {
            group,
            check,
            verdict,
            seen: seen.into(),
            mend: None,
        }
    }

    pub(super) fn ok(group: &'static str, check: &'static str, seen: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, group, check, seen)
    }

    pub(super) fn fail(group: &'static str, check: &'static str, seen: impl Into<String>) -> Self {
        Self::new(Verdict::Fail, group, check, seen)
    }

    /// Something that was not checked, or matters only where the plugin is installed: a failure with `--strict`.
    pub(super) fn unless_strict(
        group: &'static str,
        check: &'static str,
        seen: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Skip, group, check, seen)
    }

    /// How to mend it.
    pub(super) fn mend(mut self, how: impl Into<String>) -> Self {
        self.mend = Some(how.into());
        self
    }
}

/// The last line of `--json`.
#[derive(Debug, Serialize)]
struct Summary {
    summary: bool,
    failed: u32,
    passed: u32,
    skipped: u32,
}

/// All findings so far.
#[derive(Debug)]
pub(super) struct Report {
    out: Out,
    json: bool,
    strict: bool,
    summary: Summary,
}

impl Report {
    pub(super) fn new(json: bool, strict: bool) -> Self {
        Self {
            out: Out::new(),
            json,
            strict,
            summary: Summary {
                summary: true,
                failed: 0,
                passed: 0,
                skipped: 0,
            },
        }
    }

    /// Tells a finding at once: some checks take their time.
    pub(super) fn add(&mut self, mut finding: Finding) -> Result<(), Failure> {
        if self.strict && finding.verdict == Verdict::Skip {
            finding.verdict = Verdict::Fail;
        }
        let (count, word) = match finding.verdict {
            Verdict::Ok => (&mut self.summary.passed, self.out.paint(Tone::Good, "ok  ")),
            Verdict::Skip => (
                &mut self.summary.skipped,
                self.out.paint(Tone::Strange, "skip"),
            ),
            Verdict::Fail => (&mut self.summary.failed, self.out.paint(Tone::Bad, "FAIL")),
        };
        *count += 1;
        if self.json {
            self.out.line(to_json(&finding)?)?;
        } else {
            let Finding {
                group,
                check,
                seen,
                mend,
                ..
            } = finding;
            self.out
                .line(format!("{word}  {group:<9} {check}: {}", printable(&seen)))?;
            if let Some(mend) = mend {
                self.out
                    .line(format!("                mend: {}", printable(&mend)))?;
            }
        }
        self.out.flush()
    }

    /// Tells the sum.
    pub(super) fn finish(mut self) -> Result<Exit, Failure> {
        let Summary {
            failed,
            passed,
            skipped,
            ..
        } = self.summary;
        if self.json {
            self.out.line(to_json(&self.summary)?)?;
        } else {
            self.out.line(format!(
                "{failed} failed, {passed} passed, {skipped} skipped"
            ))?;
        }
        self.out.flush()?;
        Ok(if failed > 0 { Exit::Failed } else { Exit::Done })
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|e| Failure::new(Exit::Internal, e.to_string()))
}
