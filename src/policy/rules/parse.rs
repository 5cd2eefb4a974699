//! Reading a rules file: words, then one rule a line, with the line and the column of what is wrong.

use std::fmt;

use super::{Condition, Expr, Measure, Outcome, Rule, Rules, Than};

/// Bounds of a file: bytes, rules, and conditions within conditions.
const MAX_BYTES: usize = 64 << 10;
const MAX_RULES: usize = 200;
const MAX_DEPTH: usize = 16;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// A sentence without a full stop.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.message
        )
    }
}

impl std::error::Error for ParseError {}

/// Reads a whole file.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse<T: Outcome>(text: &str) -> Result<Rules<T>, ParseError> {
    let at = |line, message: String| ParseError {
        line,
        column: 1,
        message,
    };
    if text.len() > MAX_BYTES {
        return Err(at(1, format!("rules of more than {MAX_BYTES} bytes")));
    }
    let mut rules = Rules::default();
    for (index, text) in text.lines().enumerate() {
        let line = index + 1;
        let words = words(text, line)?;
        if words.is_empty() {
            continue;
        }
        if let Some(last) = rules.0.last()
            && last.when.is_none()
        {
            let message = format!("nothing comes after `otherwise` in line {}", last.line);
            return Err(at(line, message));
        }
        if rules.0.len() >= MAX_RULES {
            return Err(at(line, format!("more than {MAX_RULES} rules")));
        }
        let mut reader = Reader {
            words: &words,
            next: 0,
            line,
            end: text.chars().count() + 1,
        };
        let (when, then) = reader.rule()?;
        let text = words_text(text);
        rules.0.push(Rule {
            line,
            text,
            when,
            then,
        });
    }
    Ok(rules)
}

/// The rule as it is shown: without its comment.
fn words_text(text: &str) -> String {
    let mut quoted = false;
    let end = text.char_indices().find_map(|(i, c)| {
        quoted ^= c == '"';
        (c == '#' && !quoted).then_some(i)
    });
    text.get(..end.unwrap_or(text.len()))
        .unwrap_or(text)
        .trim()
        .to_owned()
}

#[derive(Clone, Debug, PartialEq)]
enum Word {
    Plain(String),
    Quoted(String),
    Sign(&'static str),
}

/// A word and its column.
type Placed = (Word, usize);

fn words(text: &str, line: usize) -> Result<Vec<Placed>, ParseError> {
    let mut words = Vec::new();
    let mut chars = text.chars().zip(1..).peekable();
    while let Some((c, column)) = chars.next() {
        let wrong = |message: String| ParseError {
            line,
            column,
            message,
        };
        let word = match c {
            '#' => break,
            c if c.is_whitespace() => continue,
            '(' => Word::Sign("("),
            ')' => Word::Sign(")"),
            '<' | '>' => {
                let equal = chars.next_if(|(c, _)| *c == '=').is_some();
                Word::Sign(match (c, equal) {
                    ('<', false) => "<",
                    ('<', true) => "<=",
                    (_, false) => ">",
                    (_, true) => ">=",
                })
            }
            '"' => {
                let mut name = String::new();
                loop {
                    match chars.next() {
                        Some(('"', _)) => break,
                        Some((c, _)) => name.push(c),
                        None => return Err(wrong("a name that is not closed with \"".to_owned())),
                    }
                }
                Word::Quoted(name)
            }
            c if is_plain(c) => {
                let mut word = String::from(c);
                while let Some((c, _)) = chars.next_if(|(c, _)| is_plain(*c)) {
                    word.push(c);
                }
                Word::Plain(word)
            }
            c => return Err(wrong(format!("{c:?} means nothing here"))),
        };
        words.push((word, column));
    }
    Ok(words)
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | ':' | '-' | '%' | '/' | '_')
}

struct Reader<'a> {
    words: &'a [Placed],
    next: usize,
    line: usize,
    /// The column after the last.
    end: usize,
}

type Read<T> = Result<T, ParseError>;

impl Reader<'_> {
    fn peek(&self) -> Option<&Word> {
        self.words.get(self.next).map(|(word, _)| word)
    }

    /// What is wrong with the next word.
    fn wrong<T>(&self, message: impl Into<String>) -> Read<T> {
        let column = self.words.get(self.next).map_or(self.end, |(_, c)| *c);
        Err(ParseError {
            line: self.line,
            column,
            message: message.into(),
        })
    }

    /// The next word as the user wrote it, for a message.
    fn found(&self) -> String {
        match self.peek() {
            None => "the end of the line".to_owned(),
            Some(Word::Plain(word)) => format!("`{word}`"),
            Some(Word::Quoted(name)) => format!("{name:?}"),
            Some(Word::Sign(sign)) => format!("`{sign}`"),
        }
    }

    fn take(&mut self, wanted: &str) -> bool {
        let is = match self.peek() {
            Some(Word::Plain(word)) => word.eq_ignore_ascii_case(wanted),
            Some(Word::Sign(sign)) => *sign == wanted,
            _ => false,
        };
        self.next += usize::from(is);
        is
    }

    fn rule<T: Outcome>(&mut self) -> Read<(Option<Expr>, T)> {
        let when = if self.take("otherwise") {
            None
        } else if self.take("when") {
            let when = self.any(0)?;
            if !self.take("then") {
                let found = self.found();
                return self.wrong(format!("`and`, `or` or `then` belongs here, not {found}"));
            }
            Some(when)
        } else {
            let found = self.found();
            return self.wrong(format!(
                "a rule begins with `when` or `otherwise`, not {found}"
            ));
        };
        let rest = self.words.get(self.next..).unwrap_or_default();
        let plain = rest.iter().map_while(|(word, _)| match word {
            Word::Plain(word) => Some(word.to_ascii_lowercase()),
            _ => None,
        });
        let Some((then, words)) = T::read(&plain.collect::<Vec<_>>()) else {
            let found = self.found();
            return self.wrong(format!("a rule ends with {}, not {found}", T::WANTED));
        };
        self.next += words;
        if self.peek().is_some() {
            let found = self.found();
            return self.wrong(format!("the rule is over, so {found} is too much"));
        }
        Ok((when, then))
    }

    fn any(&mut self, depth: usize) -> Read<Expr> {
        let mut parts = vec![self.all(depth)?];
        while self.take("or") {
            parts.push(self.all(depth)?);
        }
        Ok(one_or(parts, Expr::Any))
    }

    fn all(&mut self, depth: usize) -> Read<Expr> {
        let mut parts = vec![self.one(depth)?];
        while self.take("and") {
            parts.push(self.one(depth)?);
        }
        Ok(one_or(parts, Expr::All))
    }

    fn one(&mut self, depth: usize) -> Read<Expr> {
        if depth >= MAX_DEPTH {
            return self.wrong(format!("more than {MAX_DEPTH} conditions within another"));
        }
        if self.take("not") {
            return Ok(Expr::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.take("(") {
            let inner = self.any(depth + 1)?;
            if !self.take(")") {
                let found = self.found();
                return self.wrong(format!("a `)` is missing before {found}"));
            }
            return Ok(inner);
        }
        self.condition().map(Expr::Is)
    }

    fn condition(&mut self) -> Read<Condition> {
        let measures = [
            ("rate", Measure::Rate),
            ("up", Measure::Up),
            ("down", Measure::Down),
            ("rtt", Measure::RoundTrip),
            ("jitter", Measure::Jitter),
            ("loss", Measure::Loss),
        ];
        if let Some((_, measure)) = measures.into_iter().find(|(word, _)| self.take(word)) {
            return self.limit(measure);
        }
        if self.take("metered") {
            return Ok(Condition::Metered);
        }
        if self.take("network") {
            let Some(Word::Quoted(name)) = self.peek() else {
                let found = self.found();
                return self.wrong(format!(
                    "the network's name belongs here in quotes, not {found}"
                ));
            };
            let name = name.clone();
            self.next += 1;
            return Ok(Condition::Network(name));
        }
        if self.take("time") {
            return self.time();
        }
        if self.take("on") {
            if self.take("battery") {
                return Ok(Condition::Battery);
            }
            if self.take("mains") || self.take("ac") {
                return Ok(Condition::Mains);
            }
            let found = self.found();
            return self.wrong(format!(
                "`on` is followed by `battery` or `mains`, not {found}"
            ));
        }
        let found = self.found();
        self.wrong(format!(
            "a condition belongs here (rate, up, down, rtt, jitter, loss, network, metered, time, on \
             battery), not {found}"
        ))
    }

    fn limit(&mut self, measure: Measure) -> Read<Condition> {
        let signs = [
            ("<=", Than::AtMost),
            ("<", Than::Less),
            (">=", Than::AtLeast),
            (">", Than::More),
        ];
        let Some((_, than)) = signs.into_iter().find(|(sign, _)| self.take(sign)) else {
            let found = self.found();
            return self.wrong(format!("<, <=, > or >= belongs here, not {found}"));
        };
        let units: (&[(&str, f64)], &str) = match measure {
            Measure::Rate | Measure::Up | Measure::Down => {
                (RATES, "a rate in bits a second, as in 500k, 2M or 1G")
            }
            Measure::RoundTrip | Measure::Jitter => {
                (&[("ms", 1.0), ("s", 1e3)], "a time, as in 80ms or 1.5s")
            }
            Measure::Loss => (&[("%", 0.01)], "a part in percent, as in 5%"),
        };
        let value = match self.peek() {
            Some(Word::Plain(word)) => number(word, units.0),
            _ => None,
        };
        let Some(value) = value else {
            let found = self.found();
            return self.wrong(format!("{} belongs here, not {found}", units.1));
        };
        self.next += 1;
        Ok(Condition::Limit(measure, than, value))
    }

    fn time(&mut self) -> Read<Condition> {
        let span = match self.peek() {
            Some(Word::Plain(word)) => word
                .split_once('-')
                .and_then(|(from, to)| Some((minute(from)?, minute(to)?))),
            _ => None,
        };
        match span {
            Some((from, to)) if from != to => {
                self.next += 1;
                Ok(Condition::Time(from, to))
            }
            _ => {
                let found = self.found();
                self.wrong(format!(
                    "a span of the day belongs here, as in 08:00-18:00, not {found}"
                ))
            }
        }
    }
}

fn one_or(mut parts: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => {
            parts.extend(last);
            many(parts)
        }
    }
}

const RATES: &[(&str, f64)] = &[("k", 1e3), ("m", 1e6), ("g", 1e9)];

/// A rate in bits a second, as in 500k, 2M or 1G.
#[must_use]
pub fn bits(word: &str) -> Option<f64> {
    number(word, RATES)
}

/// A number with one of the units.
fn number(word: &str, units: &[(&str, f64)]) -> Option<f64> {
    let lower = word.to_ascii_lowercase();
    let (digits, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, *factor)))?;
    let plain = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let value = digits.parse::<f64>().ok().filter(|_| plain)?;
    (value.is_finite() && value < 1e12).then_some(value * factor)
}

/// `HH:MM`, up to 24:00.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |t: &str| {
        (t.len() <= 2 && t.bytes().all(|b| b.is_ascii_digit())).then(|| t.parse::<u16>().ok())?
    };
    let (hours, minutes) = (two(hours)?, two(minutes).filter(|_| minutes.len() == 2)?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= 24 * 60).then_some(minute)
}
