//! What `link` and `mode explain` show to people.

use crate::control::{Explanation, LimitStatus, LinkStatus, Measured, StateChange};
use crate::error::UserError;
use crate::output::{Output, clean};
use crate::policy::{show_ms, show_rate};

/// One change of state.
pub fn change(change: &StateChange, out: &mut Output) -> Result<(), UserError> {
    out.line(format_args!(
        "change    {}  {} -> {}: {}",
        super::when(change.at),
        change.from,
        change.to,
        clean(&change.reason)
    ))
}

/// The figures of a link, and every change that is kept.
pub fn link(link: &LinkStatus, out: &mut Output) -> Result<(), UserError> {
    let reach = if link.reachable {
        "answers"
    } else {
        "does not answer"
    };
    out.line(format_args!("share     {reach}"))?;
    let percent = |loss: f64| format!("{:.1} %", loss * 100.0);
    type Figure<'a> = (&'a str, Option<Measured>, &'a dyn Fn(f64) -> String);
    let figures: [Figure<'_>; 5] = [
        ("up", link.up_bits_per_second, &show_rate),
        ("down", link.down_bits_per_second, &show_rate),
        ("rtt", link.round_trip_ms, &show_ms),
        ("jitter", link.jitter_ms, &show_ms),
        ("loss", link.loss, &percent),
    ];
    for (name, figure, show) in figures {
        match figure {
            None => out.line(format_args!("{name:<9} not measured yet"))?,
            Some(figure) => out.line(format_args!(
                "{name:<9} {} (confidence {:.0} %, {:.0} s old)",
                show(figure.value),
                figure.confidence * 100.0,
                figure.age_seconds
            ))?,
        }
    }
    let yes = |value: Option<bool>| match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    };
    out.line(format_args!("metered   {}", yes(link.metered)))?;
    out.line(format_args!("battery   {}", yes(link.on_battery)))?;
    let networks = match &link.networks {
        None => "not known".to_owned(),
        Some(names) => names.join(", "),
    };
    out.line(format_args!("network   {}", clean(&networks)))?;
    for one in &link.changes {
        change(one, out)?;
    }
    Ok(())
}

/// What a link may be used.
pub fn limit(limit: &LimitStatus, out: &mut Output) -> Result<(), UserError> {
    let cap = limit.cap();
    let by = match limit.by.as_str() {
        "" => String::new(),
        by => format!(" ({})", clean(by)),
    };
    let until = limit
        .until
        .map_or(String::new(), |at| format!(", until {}", super::when(at)));
    out.line(format_args!("limit     {cap}{by}{until}"))?;
    if let Some(error) = &limit.rules_error {
        out.line(format_args!("          {}", clean(error)))?;
    }
    Ok(())
}

/// Why a drive is in its state.
pub fn explain(why: &Explanation, out: &mut Output) -> Result<(), UserError> {
    out.line(format_args!(
        "policy    {}, state {}",
        why.policy, why.state
    ))?;
    if let Some((at, before)) = why.until {
        let at = super::when(at);
        out.line(format_args!("          until {at}, then {before}"))?;
    }
    out.line(format_args!("because   {}", clean(&why.reason)))?;
    if let Some(held) = &why.held {
        let (wanted, held) = (why.wanted, clean(held));
        out.line(format_args!("held      it would be {wanted}, but {held}"))?;
    }
    if let Some(error) = &why.rules_error {
        out.line(format_args!(
            "rules     {}; the rules from before hold",
            clean(error)
        ))?;
    }
    for fact in &why.figures {
        let holds = match fact.holds {
            Some(true) => "yes",
            Some(false) => "no ",
            None => "?  ",
        };
        out.line(format_args!(
            "looked    {holds} {} (now {})",
            clean(&fact.condition),
            clean(&fact.now)
        ))?;
    }
    for change in &why.changes {
        out.line(format_args!("changes   {}", clean(change)))?;
    }
    Ok(())
}
