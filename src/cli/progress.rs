//! Progress on stderr: a bar on a terminal, a line a minute elsewhere.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{Output, say};
use super::quantities::human;
use crate::lock::lock;
use crate::score::{digits, shown};
use crate::search::{Progress, Snapshot};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// Shows a search to whoever is watching.
pub(super) struct Screen {
    kind: Kind,
    verbose: bool,
}

enum Kind {
    Quiet,
    Bar(ProgressBar),
    Lines(Mutex<Instant>),
}

impl Screen {
    pub(super) fn new(output: Output) -> Self {
        let screen = |kind| Self { kind, verbose: output.verbose > 0 };
        if output.quiet {
            return screen(Kind::Quiet);
        }
        if !std::io::stderr().is_terminal() {
            return screen(Kind::Lines(Mutex::new(Instant::now())));
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        bar.set_style(style("{spinner} {msg}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        screen(Kind::Bar(bar))
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}

/// The templates are constants; should one be wrong, the default style does.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Screen {
    fn line(&self, text: &str) {
        match &self.kind {
            Kind::Quiet => {}
            Kind::Bar(bar) => bar.suspend(|| say(text)),
            Kind::Lines(_) => say(text),
        }
    }

    fn detail(&self, text: &str) {
        if self.verbose {
            self.line(text);
        }
    }

    fn update(&self, snapshot: &Snapshot) {
        match &self.kind {
            Kind::Quiet => {}
            Kind::Bar(bar) => {
                if let Some(total) = snapshot.total
                    && bar.length() != Some(total)
                {
                    bar.set_length(total);
                    bar.set_style(style("{bar:24} {pos}/{len}  {msg}"));
                }
                bar.set_position(snapshot.finished);
                bar.set_message(describe(snapshot));
            }
            Kind::Lines(last) => {
                let mut last = lock(last);
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let total = snapshot.total.map(|total| format!("/{total}")).unwrap_or_default();
                    say(&format!("{}{total} evaluations, {}", snapshot.finished, describe(snapshot)));
                }
            }
        }
    }
}

fn describe(snapshot: &Snapshot) -> String {
    let mut parts = vec![format!("{} in flight", snapshot.in_flight)];
    match (&snapshot.best, &snapshot.best_baseline) {
        (Some((best, _)), Some((baseline, origin))) => {
            let digits = digits(&[*best, *baseline]);
            parts.push(format!("best {best:.digits$} ({:+.digits$} to {origin})", best - baseline));
        }
        (Some((best, _)), None) => parts.push(format!("best {}", shown(*best))),
        (None, _) => {}
    }
    if snapshot.infeasible > 0 {
        parts.push(format!("{} infeasible", snapshot.infeasible));
    }
    if snapshot.failed > 0 {
        parts.push(format!("{} failed", snapshot.failed));
    }
    parts.push(human(snapshot.active));
    if let Some(remaining) = snapshot.remaining {
        parts.push(format!("{} left", human(remaining)));
    }
    parts.join(", ")
}
