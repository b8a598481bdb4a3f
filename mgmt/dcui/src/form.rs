//! A dialog of fields: typing, choosing, moving between them. Knows nothing of what the fields mean.

use crate::keys::Key;

/// One line of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    /// A line to type in.
    Text {
        /// What stands before it.
        label: &'static str,
        /// What was typed.
        value: String,
        /// Whether it is shown as stars.
        secret: bool,
        /// At most this many bytes.
        max: usize,
        /// The choice that has to be on for this line to count.
        under: Option<usize>,
    },
    /// One of several: switching it on switches the form's other choices off.
    Choice {
        /// What it means.
        label: &'static str,
        /// Whether it is the one.
        on: bool,
    },
    /// On or off by itself.
    Check {
        /// What it means.
        label: &'static str,
        /// Which it is.
        on: bool,
    },
}

impl Field {
    /// A line to type in.
    pub(crate) fn text(label: &'static str, value: impl Into<String>) -> Self {
        Self::Text { label, value: value.into(), secret: false, max: 253, under: None }
    }

    /// A line for a password.
    pub(crate) fn secret(label: &'static str) -> Self {
        Self::Text { label, value: String::new(), secret: true, max: keelson_api::MAX_PASSWORD, under: None }
    }

    /// The same line, counting only while that choice is on.
    pub(crate) fn under(self, choice: usize) -> Self {
        match self {
            Self::Text { label, value, secret, max, .. } => {
                Self::Text { label, value, secret, max, under: Some(choice) }
            }
            other => other,
        }
    }
}

/// What a key did to a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is still being filled in.
    Open,
    /// Enter.
    Submit,
    /// Esc.
    Cancel,
}

/// Fields, and where the focus is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) title: &'static str,
    /// What is asked, above the fields.
    pub(crate) intro: String,
    pub(crate) fields: Vec<Field>,
    pub(crate) focus: usize,
    /// What was wrong with the last try.
    pub(crate) error: Option<String>,
}

impl Form {
    /// A form with the focus on its first field, or on the choice that is on.
    pub(crate) fn new(title: &'static str, intro: impl Into<String>, fields: Vec<Field>) -> Self {
        let focus = fields.iter().position(|f| matches!(f, Field::Choice { on: true, .. })).unwrap_or(0);
        Self { title, intro: intro.into(), fields, focus, error: None }
    }

    /// Whether a field counts now.
    pub(crate) fn enabled(&self, index: usize) -> bool {
        match self.fields.get(index) {
            Some(Field::Text { under: Some(choice), .. }) => self.is_on(*choice),
            Some(_) => true,
            None => false,
        }
    }

    /// What a line holds, without white space around it unless it is a secret.
    pub(crate) fn value(&self, index: usize) -> &str {
        match self.fields.get(index) {
            Some(Field::Text { value, secret: true, .. }) => value,
            Some(Field::Text { value, .. }) => value.trim(),
            _ => "",
        }
    }

    /// Whether a choice or check is on.
    pub(crate) fn is_on(&self, index: usize) -> bool {
        matches!(self.fields.get(index), Some(Field::Choice { on: true, .. } | Field::Check { on: true, .. }))
    }

    /// Takes a key.
    pub(crate) fn key(&mut self, key: Key) -> Outcome {
        match key {
            Key::Esc => return Outcome::Cancel,
            Key::Enter => return Outcome::Submit,
            Key::Down | Key::Tab => self.step(1),
            Key::Up | Key::BackTab => self.step(self.fields.len().saturating_sub(1)),
            Key::Char(' ') if !matches!(self.fields.get(self.focus), Some(Field::Text { .. })) => self.mark(),
            Key::Char(c) => self.edit(|value, max| {
                if value.len() + c.len_utf8() <= max {
                    value.push(c);
                }
            }),
            Key::Backspace => self.edit(|value, _| {
                value.pop();
            }),
            Key::Ctrl('u') => self.edit(|value, _| value.clear()),
            _ => {}
        }
        Outcome::Open
    }

    fn edit(&mut self, change: impl FnOnce(&mut String, usize)) {
        if let Some(Field::Text { value, max, .. }) = self.fields.get_mut(self.focus) {
            change(value, *max);
            self.error = None;
        }
    }

    fn mark(&mut self) {
        self.error = None;
        match self.fields.get_mut(self.focus) {
            Some(Field::Check { on, .. }) => *on = !*on,
            Some(Field::Choice { .. }) => {
                for (index, field) in self.fields.iter_mut().enumerate() {
                    if let Field::Choice { on, .. } = field {
                        *on = index == self.focus;
                    }
                }
            }
            _ => {}
        }
    }

    /// Moves the focus on by `by`, and further over fields that do not count.
    fn step(&mut self, by: usize) {
        let count = self.fields.len().max(1);
        let mut next = (self.focus + by) % count;
        while next != self.focus && !self.enabled(next) {
            next = (next + if by == 1 { 1 } else { count - 1 }) % count;
        }
        self.focus = next;
    }

    /// Empties the secrets, says what was wrong, and puts the focus on that field.
    pub(crate) fn refuse(&mut self, field: usize, why: impl Into<String>) {
        for field in &mut self.fields {
            if let Field::Text { value, secret: true, .. } = field {
                value.clear();
            }
        }
        self.focus = field;
        self.error = Some(why.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form() -> Form {
        let fields = vec![
            Field::Choice { label: "DHCP", on: true },
            Field::Choice { label: "Static", on: false },
            Field::text("Address", "").under(1),
            Field::Check { label: "Box", on: false },
        ];
        Form::new("T", "", fields)
    }

    #[test]
    fn lines_under_a_choice_count_only_with_it() {
        let mut form = form();
        form.key(Key::Down);
        form.key(Key::Down);
        assert_eq!(form.focus, 3, "the address is skipped");
        form.key(Key::Up);
        assert_eq!(form.focus, 1);
        form.key(Key::Char(' '));
        assert!(form.is_on(1) && !form.is_on(0));
        form.key(Key::Tab);
        for c in "192.0.2.1x".chars() {
            form.key(Key::Char(c));
        }
        form.key(Key::Backspace);
        assert_eq!(form.value(2), "192.0.2.1");
        form.key(Key::Down);
        form.key(Key::Char(' '));
        assert!(form.is_on(3) && form.is_on(1));
    }

    #[test]
    fn a_refused_form_forgets_its_secrets_only() {
        let mut form = Form::new("T", "", vec![Field::text("Name", "n"), Field::secret("Password")]);
        form.key(Key::Down);
        form.key(Key::Char(' '));
        assert_eq!(form.value(1), " ");
        form.refuse(1, "no");
        assert_eq!((form.value(0), form.value(1), form.error.as_deref()), ("n", "", Some("no")));
    }
}
