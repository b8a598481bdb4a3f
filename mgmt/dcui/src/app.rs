//! The console's state and what keys, news and time do to it. Pure: effects are returned, not carried out.

use std::time::Duration;

use keelson_api::{HostPowerAction, LogLine, MAX_PASSWORD, MIN_PASSWORD};

use crate::changes::Changes;
use crate::facts::{Fact, Facts, Link};
use crate::form::{Field, Form, Outcome};
use crate::jobs::{Done, Failure, Job};
use crate::keys::Key;
use crate::menu::Table;

/// Nobody at the keys for this long logs out.
pub(crate) const IDLE: Duration = Duration::from_secs(600);
/// How often the log view asks for more.
const LOG_REFRESH: Duration = Duration::from_secs(2);
/// How many log lines the view keeps.
const LOG_KEPT: usize = 2000;

/// What opens on Enter in a menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opens {
    Menu(Table),
    Password,
    Ipv4,
    Dns,
    Services,
    RestartNetwork,
    Logs,
}

/// What a form is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The password, to go on to the menu or to the power dialog.
    Login(After),
    /// A new password; the first one has no old one, and goes on to the menu.
    Password {
        first: bool,
    },
    Ipv4,
    Dns,
    Services,
}

/// Where a login leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Menu,
    Power,
}

/// A question with a few keys for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Leaving with changes.
    Apply,
    /// Restart the management network?
    RestartNetwork,
    /// Shut down or restart?
    Power,
}

/// One screen; they lie on each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Screen {
    Menu {
        table: Table,
        selected: usize,
    },
    Form {
        purpose: Purpose,
        form: Form,
        waiting: Option<u64>,
    },
    Ask(Question),
    /// A job is at work; `job` is its number.
    Busy {
        title: &'static str,
        text: &'static str,
        job: u64,
    },
    Notice {
        title: &'static str,
        text: String,
    },
    Logs {
        lines: Vec<LogLine>,
        up: usize,
        asked: Option<u64>,
        asked_at: Duration,
        error: Option<String>,
    },
}

/// Something to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Do this; the answer carries the number.
    Do(u64, Job),
    /// Paint everything anew.
    Repaint,
}

/// The title of the notice that nothing goes without hostd.
const HOST_AGENT: &str = "Host Agent";

/// The console.
#[derive(Debug, Default)]
pub(crate) struct App {
    pub(crate) facts: Facts,
    pub(crate) changes: Changes,
    pub(crate) screens: Vec<Screen>,
    /// Jobs whose screen was left while they were at work.
    background: Vec<(u64, &'static str)>,
    now: Duration,
    last_key: Duration,
    next_job: u64,
    /// A key of the first screen that waits for the host agent.
    waits: Option<Key>,
}

impl App {
    /// News.
    pub(crate) fn learn(&mut self, fact: Fact) {
        self.facts.learn(fact);
        if let (Link::Up, Some(key)) = (&self.facts.hostd, self.waits)
            && matches!(self.screens.last(), Some(Screen::Notice { title: HOST_AGENT, .. }))
        {
            self.screens.pop();
            self.main_key(key);
        }
        if self.facts.going_down.is_some() {
            self.log_out();
        }
    }

    /// Time has passed; `now` counts from the console's start.
    pub(crate) fn tick(&mut self, now: Duration) -> Vec<Effect> {
        self.now = now;
        if !self.screens.is_empty() && now.saturating_sub(self.last_key) >= IDLE {
            self.log_out();
        }
        if let Some(Screen::Logs { asked: None, asked_at, .. }) = self.screens.last()
            && now.saturating_sub(*asked_at) >= LOG_REFRESH
        {
            return self.ask_logs();
        }
        Vec::new()
    }

    /// How long nothing happens by itself.
    pub(crate) fn next_tick(&self) -> Duration {
        match self.screens.last() {
            Some(Screen::Logs { .. }) => LOG_REFRESH / 2,
            Some(_) => Duration::from_secs(5),
            None => Duration::from_secs(30),
        }
    }

    fn log_out(&mut self) {
        self.screens.clear();
        self.changes = Changes::default();
    }

    fn job(&mut self, job: Job) -> (u64, Vec<Effect>) {
        self.next_job += 1;
        (self.next_job, vec![Effect::Do(self.next_job, job)])
    }

    /// A key was pressed.
    pub(crate) fn key(&mut self, key: Key) -> Vec<Effect> {
        self.last_key = self.now;
        if key == Key::Ctrl('l') {
            return vec![Effect::Repaint];
        }
        match self.screens.last_mut() {
            None => self.main_key(key),
            Some(Screen::Menu { .. }) => self.menu_key(key),
            Some(Screen::Form { form, waiting, .. }) => {
                // While the password is looked at, only Esc counts.
                if waiting.is_some() {
                    if key == Key::Esc {
                        self.screens.pop();
                    }
                    return Vec::new();
                }
                match form.key(key) {
                    Outcome::Open => Vec::new(),
                    Outcome::Cancel => {
                        self.screens.pop();
                        Vec::new()
                    }
                    Outcome::Submit => self.submit(),
                }
            }
            Some(Screen::Ask(question)) => {
                let question = *question;
                self.answer(question, key)
            }
            Some(Screen::Busy { title, job, .. }) => {
                if key == Key::Esc {
                    self.background.push((*job, *title));
                    self.screens.pop();
                }
                Vec::new()
            }
            Some(Screen::Notice { .. }) => {
                if matches!(key, Key::Esc | Key::Enter) {
                    self.screens.pop();
                }
                Vec::new()
            }
            Some(Screen::Logs { lines, up, .. }) => {
                match key {
                    Key::Esc => {
                        self.screens.pop();
                    }
                    Key::Up => *up = (*up + 1).min(lines.len()),
                    Key::Down => *up = up.saturating_sub(1),
                    Key::PageUp | Key::Char('b') => *up = (*up + 15).min(lines.len()),
                    Key::PageDown | Key::Char(' ') => *up = up.saturating_sub(15),
                    Key::Home => *up = lines.len(),
                    Key::End => *up = 0,
                    _ => {}
                }
                Vec::new()
            }
        }
    }

    fn main_key(&mut self, key: Key) -> Vec<Effect> {
        let after = match key {
            Key::F(2) => After::Menu,
            Key::F(12) => After::Power,
            _ => return Vec::new(),
        };
        if self.facts.going_down.is_some() {
            return Vec::new();
        }
        self.waits = None;
        let password_set = match (&self.facts.hostd, self.facts.password_set()) {
            (Link::Up, Some(set)) => set,
            (Link::Down(why), _) => {
                let text = format!(
                    "The host agent (hostd) does not answer: {why}. Nothing can be changed without it. It is started again by itself; this goes on as soon as it answers."
                );
                self.screens.push(Screen::Notice { title: HOST_AGENT, text });
                self.waits = Some(key);
                return Vec::new();
            }
            _ => {
                let text = "The host agent (hostd) has not answered yet; it may still be starting. This goes on as soon as it answers.".into();
                self.screens.push(Screen::Notice { title: HOST_AGENT, text });
                self.waits = Some(key);
                return Vec::new();
            }
        };
        match (password_set, after) {
            (true, after) => {
                let title =
                    if after == After::Menu { "Authentication Required" } else { "Shut Down/Restart" };
                let form = Form::new(
                    title,
                    format!("Enter the password of root on {}.", self.facts.hostname()),
                    vec![Field::secret("Password")],
                );
                self.screens.push(Screen::Form { purpose: Purpose::Login(after), form, waiting: None });
            }
            (false, After::Menu) => self.screens.push(password_screen(true)),
            // Nobody can know a password that is not set, and whoever stands here could pull the plug.
            (false, After::Power) => self.screens.push(Screen::Ask(Question::Power)),
        }
        Vec::new()
    }

    fn menu_key(&mut self, key: Key) -> Vec<Effect> {
        let Some(Screen::Menu { table, selected }) = self.screens.last_mut() else { return Vec::new() };
        let items = table.items();
        let last = items.len().saturating_sub(1);
        match key {
            Key::Up => *selected = selected.saturating_sub(1),
            Key::Down => *selected = (*selected + 1).min(last),
            Key::Home => *selected = 0,
            Key::End => *selected = last,
            Key::Enter => {
                if let Some(item) = items.get(*selected) {
                    return self.open(item.opens);
                }
            }
            Key::Esc if *table == Table::Network && !self.changes.is_empty() => {
                self.screens.push(Screen::Ask(Question::Apply))
            }
            Key::Esc => {
                self.screens.pop();
            }
            _ => {}
        }
        Vec::new()
    }

    fn open(&mut self, opens: Opens) -> Vec<Effect> {
        let needs_network = matches!(opens, Opens::Ipv4 | Opens::Dns | Opens::Services);
        if needs_network && self.facts.management().is_none() {
            let text = "The network daemon (netd) has not told this host's network yet, so it cannot be configured now. Try again in a moment.".into();
            self.screens.push(Screen::Notice { title: "Management Network", text });
            return Vec::new();
        }
        let form = |purpose, form| Screen::Form { purpose, form, waiting: None };
        let screen = match opens {
            Opens::Menu(table) => Screen::Menu { table, selected: 0 },
            Opens::Password => password_screen(self.facts.password_set() == Some(false)),
            Opens::Ipv4 => form(Purpose::Ipv4, self.changes.ipv4_form(&self.facts)),
            Opens::Dns => form(Purpose::Dns, self.changes.dns_form(&self.facts)),
            Opens::Services => form(Purpose::Services, self.changes.services_form(&self.facts)),
            Opens::RestartNetwork => Screen::Ask(Question::RestartNetwork),
            Opens::Logs => {
                self.screens.push(Screen::Logs {
                    lines: Vec::new(),
                    up: 0,
                    asked: None,
                    asked_at: self.now,
                    error: None,
                });
                return self.ask_logs();
            }
        };
        self.screens.push(screen);
        Vec::new()
    }

    fn submit(&mut self) -> Vec<Effect> {
        let Some(Screen::Form { purpose, form, .. }) = self.screens.last_mut() else { return Vec::new() };
        let taken = match *purpose {
            Purpose::Login(_) => {
                let job = Job::Verify(form.value(0).to_owned());
                return self.wait_for(job);
            }
            Purpose::Password { first } => match new_password(form, first) {
                Ok(job) => return self.wait_for(job),
                Err(wrong) => Err(wrong),
            },
            Purpose::Ipv4 => self.changes.take_ipv4(form, &self.facts),
            Purpose::Dns => self.changes.take_dns(form, &self.facts),
            Purpose::Services => {
                self.changes.take_services(form, &self.facts);
                Ok(())
            }
        };
        match taken {
            Ok(()) => {
                self.screens.pop();
            }
            Err((field, why)) => form.refuse(field, why),
        }
        Vec::new()
    }

    fn wait_for(&mut self, job: Job) -> Vec<Effect> {
        let (number, effects) = self.job(job);
        if let Some(Screen::Form { form, waiting, .. }) = self.screens.last_mut() {
            form.error = None;
            *waiting = Some(number);
        }
        effects
    }

    fn answer(&mut self, question: Question, key: Key) -> Vec<Effect> {
        let yes = matches!(key, Key::Char('y' | 'Y'));
        let no = matches!(key, Key::Char('n' | 'N'));
        match question {
            Question::Apply if yes => {
                self.screens.pop();
                let Some(updates) = self.changes.updates(&self.facts) else { return Vec::new() };
                self.busy(
                    "Configure Management Network",
                    "Applying the changes and restarting the management network …",
                    Job::Apply(Box::new(updates)),
                )
            }
            Question::Apply if no => {
                self.changes = Changes::default();
                // The question and the menu under it.
                self.screens.pop();
                self.screens.pop();
                Vec::new()
            }
            Question::RestartNetwork if yes || key == Key::Enter => {
                self.screens.pop();
                self.busy(
                    "Restart Management Network",
                    "Restarting the management network …",
                    Job::RestartNetwork,
                )
            }
            Question::RestartNetwork if no => {
                self.screens.pop();
                Vec::new()
            }
            Question::Power if matches!(key, Key::F(2 | 11)) => {
                self.screens.pop();
                let (text, action) = match key {
                    Key::F(2) => {
                        ("The host shuts down: VMs get their power button first …", HostPowerAction::PowerOff)
                    }
                    _ => ("The host restarts: VMs get their power button first …", HostPowerAction::Reboot),
                };
                self.busy("Shut Down/Restart", text, Job::Power(action))
            }
            _ => {
                if key == Key::Esc {
                    self.screens.pop();
                }
                Vec::new()
            }
        }
    }

    fn busy(&mut self, title: &'static str, text: &'static str, job: Job) -> Vec<Effect> {
        let (job, effects) = self.job(job);
        self.screens.push(Screen::Busy { title, text, job });
        effects
    }

    fn ask_logs(&mut self) -> Vec<Effect> {
        let since = match self.screens.last() {
            Some(Screen::Logs { lines, .. }) => lines.last().map_or(0, |l| l.seq + 1),
            _ => 0,
        };
        let now = self.now;
        let (number, effects) = self.job(Job::Logs(since));
        if let Some(Screen::Logs { asked, asked_at, .. }) = self.screens.last_mut() {
            (*asked, *asked_at) = (Some(number), now);
        }
        effects
    }

    /// A job has ended.
    pub(crate) fn done(&mut self, number: u64, result: Result<Done, Failure>) {
        let at = self.screens.iter().position(|screen| match screen {
            Screen::Form { waiting, .. } => *waiting == Some(number),
            Screen::Busy { job, .. } => *job == number,
            Screen::Logs { asked, .. } => *asked == Some(number),
            _ => false,
        });
        let Some(at) = at else { return self.done_in_background(number, result) };
        match self.screens.get_mut(at) {
            Some(Screen::Form { purpose, form, waiting }) => {
                *waiting = None;
                let purpose = *purpose;
                match (result, purpose) {
                    (Err(failure), _) => {
                        let why = match failure {
                            Failure::WrongPassword => "The password is wrong.".into(),
                            Failure::Other(why) => why,
                        };
                        form.refuse(0, why);
                    }
                    (Ok(_), Purpose::Login(After::Power)) => self.replace(at, Screen::Ask(Question::Power)),
                    (Ok(_), Purpose::Login(After::Menu) | Purpose::Password { first: true }) => {
                        self.replace(at, Screen::Menu { table: Table::System, selected: 0 });
                    }
                    (Ok(_), _) => self.replace(
                        at,
                        Screen::Notice {
                            title: "Configure Password",
                            text: "The password was changed. All other sessions have ended.".into(),
                        },
                    ),
                }
                if matches!(purpose, Purpose::Password { .. }) {
                    self.password_is_set();
                }
            }
            Some(Screen::Busy { title, .. }) => {
                let title = *title;
                match result {
                    Ok(_) => {
                        self.changes = Changes::default();
                        self.screens.remove(at);
                        // After applying, the network's menu is left as well, as was asked for.
                        if matches!(self.screens.last(), Some(Screen::Menu { table: Table::Network, .. })) {
                            self.screens.pop();
                        }
                    }
                    Err(Failure::WrongPassword) => self.replace(
                        at,
                        Screen::Notice { title, text: "The host agent did not permit it.".into() },
                    ),
                    Err(Failure::Other(text)) => self.replace(at, Screen::Notice { title, text }),
                }
            }
            Some(Screen::Logs { lines, up, asked, error, .. }) => {
                *asked = None;
                match result {
                    Ok(Done::Lines(more)) => {
                        *error = None;
                        if *up > 0 {
                            *up += more.len();
                        }
                        lines.extend(more);
                        let over = lines.len().saturating_sub(LOG_KEPT);
                        lines.drain(..over);
                        *up = (*up).min(lines.len());
                    }
                    Ok(Done::Ok) => {}
                    Err(Failure::WrongPassword) => *error = Some("the host agent did not permit it".into()),
                    Err(Failure::Other(why)) => *error = Some(why),
                }
            }
            _ => {}
        }
    }

    /// One whose screen was left has ended: that is silent, unless it failed.
    fn done_in_background(&mut self, number: u64, result: Result<Done, Failure>) {
        let Some(at) = self.background.iter().position(|(job, _)| *job == number) else { return };
        let (_, title) = self.background.remove(at);
        match result {
            Ok(_) => self.changes = Changes::default(),
            Err(Failure::WrongPassword) => {
                self.screens.push(Screen::Notice { title, text: "The host agent did not permit it.".into() })
            }
            Err(Failure::Other(text)) => self.screens.push(Screen::Notice { title, text }),
        }
    }

    /// Known at once, not only when hostd is asked the next time.
    fn password_is_set(&mut self) {
        let set = !matches!(self.screens.last(), Some(Screen::Form { form, .. }) if form.error.is_some());
        if let (true, Some(identity)) = (set, &mut self.facts.identity) {
            identity.password_set = true;
        }
    }

    fn replace(&mut self, at: usize, screen: Screen) {
        if let Some(slot) = self.screens.get_mut(at) {
            *slot = screen;
        }
    }
}

fn password_screen(first: bool) -> Screen {
    let rules =
        format!("At least {MIN_PASSWORD} characters. It is asked for here, by the API and by keelctl.");
    let (title, intro, mut fields) = if first {
        ("Set Password", format!("Choose a password for root. {rules}"), vec![])
    } else {
        ("Configure Password", rules, vec![Field::secret("Old Password")])
    };
    fields.extend([Field::secret("New Password"), Field::secret("Confirm Password")]);
    Screen::Form {
        purpose: Purpose::Password { first },
        form: Form::new(title, intro, fields),
        waiting: None,
    }
}

fn new_password(form: &Form, first: bool) -> Result<Job, (usize, String)> {
    let at = usize::from(!first);
    let new = form.value(at);
    if new.chars().count() < MIN_PASSWORD {
        return Err((at, format!("The new password has fewer than {MIN_PASSWORD} characters.")));
    }
    if new.len() > MAX_PASSWORD {
        return Err((at, format!("The new password has more than {MAX_PASSWORD} bytes.")));
    }
    if new != form.value(at + 1) {
        return Err((at, "The two new passwords are not the same.".into()));
    }
    Ok(Job::SetPassword { current: (!first).then(|| form.value(0).to_owned()), new: new.to_owned() })
}
