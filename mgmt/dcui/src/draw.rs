//! What each state looks like.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};

use crate::app::{App, Purpose, Question, Screen};
use crate::facts::Link;
use crate::form::{Field, Form};
use crate::menu::Table;

const TOP: Style = Style::new().fg(Color::White).bg(Color::Blue);
/// Never with `BOLD`: bold black is dark grey on a VGA screen, which nobody reads on cyan.
const BOTTOM: Style = Style::new().fg(Color::Black).bg(Color::Cyan);
const ALERT: Style = Style::new().fg(Color::White).bg(Color::Red);
const DIALOG: Style = Style::new().fg(Color::Black).bg(Color::Gray);
const INPUT: Style = Style::new().fg(Color::White).bg(Color::Black);
const FAINT: Style = Style::new().fg(Color::DarkGray).bg(Color::Gray);

/// Draws the console; returns where the cursor belongs, if anywhere.
pub(crate) fn draw(app: &App, buffer: &mut Buffer) -> Option<Position> {
    let area = buffer.area;
    main_screen(app, buffer, area);
    let mut cursor = None;
    for screen in &app.screens {
        cursor = match screen {
            Screen::Menu { table, selected } => {
                menu(app, *table, *selected, buffer, area);
                None
            }
            Screen::Form { purpose, form, waiting } => {
                form_dialog(*purpose, form, waiting.is_some(), buffer, area)
            }
            Screen::Ask(question) => {
                ask(*question, buffer, area);
                None
            }
            Screen::Busy { title, text, .. } => {
                dialog(title, &wrap(text, 60), "<Esc> Go on in the background", buffer, area);
                None
            }
            Screen::Notice { title, text } => {
                dialog(title, &wrap(text, 60), "<Enter> OK", buffer, area);
                None
            }
            Screen::Logs { lines, up, error, .. } => {
                let text: Vec<String> = lines
                    .iter()
                    .map(|l| format!("{} {}: {}", clock(l.time.as_second()), l.source, l.text))
                    .collect();
                logs(&text, *up, error.as_deref(), buffer, area);
                None
            }
        };
    }
    cursor
}

/// Hours, minutes and seconds of the day in UTC, from seconds since the epoch.
fn clock(seconds: i64) -> String {
    let day = seconds.rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", day / 3600, day / 60 % 60, day % 60)
}

fn put(buffer: &mut Buffer, x: u16, y: u16, text: &str, style: Style) {
    let area = buffer.area;
    if y < area.bottom() && x < area.right() {
        buffer.set_stringn(x, y, text, usize::from(area.right() - x), style);
    }
}

fn fill(buffer: &mut Buffer, area: Rect, style: Style) {
    let area = area.intersection(buffer.area);
    for y in area.top()..area.bottom() {
        for x in area.left()..area.right() {
            if let Some(cell) = buffer.cell_mut((x, y)) {
                cell.reset();
                cell.set_style(style);
            }
        }
    }
}

fn last_line(buffer: &mut Buffer, left: &str, right: &str, style: Style) {
    let area = buffer.area;
    let y = area.bottom().saturating_sub(1);
    put(buffer, 1, y, left, style);
    put(buffer, area.right().saturating_sub(width(right) + 1), y, right, style);
}

fn width(text: &str) -> u16 {
    u16::try_from(text.chars().count()).unwrap_or(u16::MAX)
}

fn main_screen(app: &App, buffer: &mut Buffer, area: Rect) {
    let facts = &app.facts;
    let split = (area.height / 3).max(8);
    fill(buffer, Rect { height: split, ..area }, TOP);
    fill(buffer, Rect { y: split, height: area.height.saturating_sub(split), ..area }, BOTTOM);

    let kernel = facts.host.as_ref().map(|h| format!("  (Linux {})", h.kernel)).unwrap_or_default();
    put(buffer, 2, 1, &format!("Keelson {}{kernel}", facts.version()), TOP.add_modifier(Modifier::BOLD));
    put(buffer, 2, 3, facts.hostname(), TOP);
    let (cpu, memory) = match &facts.host {
        Some(host) => {
            let cpu = &host.cpu;
            let parts =
                [count(cpu.sockets, "socket"), count(cpu.cores, "core"), count(cpu.threads, "thread")];
            (format!("{} ({})", cpu.model, parts.join(", ")), host.memory.total_bytes)
        }
        None => (
            format!("{} ({})", facts.hardware.cpu, count(facts.hardware.threads, "thread")),
            facts.hardware.memory,
        ),
    };
    put(buffer, 2, 5, &cpu, TOP);
    put(buffer, 2, 6, &format!("{} of memory", size(memory)), TOP);

    let mut y = split + 1;
    if let Some(action) = facts.going_down {
        let word =
            if action == keelson_init_control::PowerAction::Reboot { "restarting" } else { "shutting down" };
        put(buffer, 2, y, &format!("This host is {word}. VMs get their power button first."), BOTTOM);
        return;
    }
    put(buffer, 2, y, "Download tools to manage this host from:", BOTTOM);
    y += 1;
    let addresses = facts.addresses();
    if addresses.is_empty() {
        let text = match (&facts.netd, &facts.network) {
            (Link::Waiting, None) => "(the network is being configured)",
            (_, None) => "(the network is not known)",
            _ => "(no address yet)",
        };
        put(buffer, 2, y, text, BOTTOM);
        y += 1;
    }
    for address in addresses.iter().take(3) {
        put(buffer, 2, y, address, BOTTOM);
        y += 1;
    }
    y += 1;
    if let Some(identity) = &facts.identity {
        put(buffer, 2, y, "SHA-256 fingerprint of its certificate:", BOTTOM);
        // 32 pairs are too wide for one line of 80.
        let pairs: Vec<&str> = identity.certificate_sha256.split(':').collect();
        for row in pairs.chunks(16) {
            y += 1;
            put(buffer, 2, y, &row.join(":"), BOTTOM);
        }
        y += 2;
    }
    notices(app, buffer, area, y);
    last_line(buffer, "<F2> Customize System/View Logs", "<F12> Shut Down/Restart", BOTTOM);
}

/// The notices from line `y` on: whole, with what to do, where all fit; else the first line of each, so that every one is named
/// while there is room; the rest is counted.
fn notices(app: &App, buffer: &mut Buffer, area: Rect, mut y: u16) {
    let width = usize::from(area.width).saturating_sub(6);
    let room = usize::from(area.bottom().saturating_sub(1).saturating_sub(y));
    let notices = app.facts.notices();
    let whole = |n: &crate::facts::Notice| wrap(&format!("{} {}", n.message, n.remedy), width);
    let mut shown: Vec<Vec<String>> = notices.iter().map(whole).collect();
    if shown.iter().map(Vec::len).sum::<usize>() > room {
        shown = notices.iter().map(|n| first_line(&n.message, width)).collect();
    }
    if shown.len() > room {
        let rest = shown.len() - room.saturating_sub(1);
        shown.truncate(room.saturating_sub(1));
        shown.push(vec![format!("{rest} more notices: keelctl host shows them")]);
        shown.truncate(room);
    }
    for lines in shown {
        put(buffer, 1, y, " ! ", ALERT);
        for line in lines {
            put(buffer, 5, y, &line, BOTTOM);
            y += 1;
        }
    }
}

/// A text's first line, with a sign that it goes on.
fn first_line(text: &str, width: usize) -> Vec<String> {
    let mut lines = wrap(text, width.saturating_sub(2));
    let more = lines.len() > 1;
    lines.truncate(1);
    if let (true, Some(line)) = (more, lines.first_mut()) {
        line.push_str(" …");
    }
    lines
}

fn count(n: u32, what: &str) -> String {
    if n == 1 { format!("{n} {what}") } else { format!("{n} {what}s") }
}

fn size(bytes: u64) -> String {
    let mib = bytes / (1024 * 1024);
    if mib >= 10 * 1024 {
        format!("{} GiB", mib / 1024)
    } else if mib >= 1024 {
        format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024)
    } else {
        format!("{mib} MiB")
    }
}

fn menu(app: &App, table: Table, selected: usize, buffer: &mut Buffer, area: Rect) {
    let middle = area.width / 2;
    fill(buffer, area, BOTTOM);
    fill(buffer, Rect { height: 3, ..area }, TOP);
    put(buffer, 2, 1, table.title(), TOP.add_modifier(Modifier::BOLD));
    for (n, item) in table.items().iter().enumerate() {
        let y = 4 + u16::try_from(n).unwrap_or(0);
        let style = if n == selected { INPUT } else { BOTTOM };
        put(buffer, 1, y, &format!(" {:<1$}", item.title, usize::from(middle).saturating_sub(4)), style);
    }
    if let Some(item) = table.items().get(selected) {
        put(buffer, middle, 1, item.title, TOP.add_modifier(Modifier::BOLD));
        let mut y = 4;
        for paragraph in (item.explain)(app) {
            for line in wrap(&paragraph, usize::from(area.width - middle).saturating_sub(2)) {
                if y < area.bottom().saturating_sub(2) {
                    put(buffer, middle, y, &line, BOTTOM);
                }
                y += 1;
            }
        }
    }
    let leave = if table == Table::System { "<Esc> Log Out" } else { "<Esc> Exit" };
    last_line(buffer, "<Up/Down> Select   <Enter> Change", leave, BOTTOM);
}

fn ask(question: Question, buffer: &mut Buffer, area: Rect) {
    match question {
        Question::Apply => {
            let text =
                "You have changed the management network of this host. Sessions over the network may break.";
            let mut lines = vec!["Apply changes and restart management network?".to_owned(), String::new()];
            lines.extend(wrap(text, 60));
            dialog(
                "Configure Management Network: Confirm",
                &lines,
                "<Y> Yes   <N> No   <Esc> Cancel",
                buffer,
                area,
            );
        }
        Question::RestartNetwork => {
            let text = "Restart the management network of this host? Sessions over the network may break; VMs and their networks go on.";
            dialog(
                "Restart Management Network: Confirm",
                &wrap(text, 60),
                "<Y> Yes   <N> No   <Esc> Cancel",
                buffer,
                area,
            );
        }
        Question::Power => {
            let lines =
                wrap("VMs that run get their power button and 60 seconds before the host goes down.", 60);
            dialog(
                "Shut Down/Restart",
                &lines,
                "<F2> Shut Down   <F11> Restart   <Esc> Cancel",
                buffer,
                area,
            );
        }
    }
}

/// A dialog in the middle; returns where its text begins.
fn dialog(title: &str, lines: &[String], hints: &str, buffer: &mut Buffer, area: Rect) -> Position {
    let widest = lines.iter().map(|l| width(l)).max().unwrap_or(0).max(width(hints)).max(width(title));
    let w = (widest + 4).clamp(50, area.width.max(50)).min(area.width);
    let h = (u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(5)).min(area.height);
    let place = Rect { x: (area.width - w) / 2, y: (area.height - h) / 2, width: w, height: h };
    fill(buffer, place, DIALOG);
    fill(buffer, Rect { height: 1, ..place }, TOP);
    put(buffer, place.x + 2, place.y, title, TOP.add_modifier(Modifier::BOLD));
    for (line, y) in lines.iter().zip(place.y + 2..place.bottom().saturating_sub(2)) {
        put(buffer, place.x + 2, y, line, DIALOG);
    }
    put(
        buffer,
        place.right().saturating_sub(width(hints) + 2),
        place.bottom().saturating_sub(1),
        hints,
        DIALOG,
    );
    Position::new(place.x + 2, place.y + 2)
}

fn form_dialog(
    purpose: Purpose,
    form: &Form,
    waiting: bool,
    buffer: &mut Buffer,
    area: Rect,
) -> Option<Position> {
    const WIDE: usize = 60;
    let mut lines = wrap(&form.intro, WIDE);
    lines.push(String::new());
    let first = u16::try_from(lines.len()).unwrap_or(0);
    lines.extend(form.fields.iter().map(|_| " ".repeat(WIDE)));
    lines.push(String::new());
    match &form.error {
        Some(error) => lines.extend(wrap(error, WIDE)),
        None if waiting => lines.push("Please wait …".into()),
        None => lines.push(String::new()),
    }
    let hints = match purpose {
        _ if waiting => "<Esc> Cancel",
        Purpose::Ipv4 | Purpose::Services => "<Up/Down> Select  <Space> Mark  <Enter> OK  <Esc> Cancel",
        Purpose::Login(_) => "<Enter> OK  <Esc> Cancel",
        Purpose::Password { .. } | Purpose::Dns => "<Up/Down> Select  <Enter> OK  <Esc> Cancel",
    };
    let at = dialog(form.title, &lines, hints, buffer, area);
    if form.error.is_some() {
        let y = at.y + first + u16::try_from(form.fields.len()).unwrap_or(0) + 1;
        for row in y..(y + 3).min(area.bottom()) {
            for x in at.x..at.x + u16::try_from(WIDE).unwrap_or(0) {
                if let Some(cell) = buffer
                    .cell_mut((x, row))
                    .filter(|c| c.bg == Color::Gray && row < at.y + u16::try_from(lines.len()).unwrap_or(0))
                {
                    cell.set_style(ALERT);
                }
            }
        }
    }
    let mut cursor = None;
    for (n, field) in form.fields.iter().enumerate() {
        let y = at.y + first + u16::try_from(n).unwrap_or(0);
        let focused = n == form.focus;
        match field {
            Field::Text { label, value, secret, under, .. } => {
                let indent = if under.is_some() { 4 } else { 0 };
                put(buffer, at.x + indent, y, label, if form.enabled(n) { DIALOG } else { FAINT });
                let x = at.x + 24;
                let room = 36;
                let shown: String = if *secret { "*".repeat(value.chars().count()) } else { value.clone() };
                // The end is what is being typed.
                let skip = shown.chars().count().saturating_sub(room - 1);
                let tail: String = shown.chars().skip(skip).collect();
                put(buffer, x, y, &format!("{tail:<room$}"), if form.enabled(n) { INPUT } else { FAINT });
                if focused && !waiting {
                    cursor = Some(Position::new(x + width(&tail), y));
                }
            }
            Field::Choice { label, on } => {
                mark(buffer, at.x, y, if *on { "(o)" } else { "( )" }, label, focused)
            }
            Field::Check { label, on } => {
                mark(buffer, at.x, y, if *on { "[X]" } else { "[ ]" }, label, focused)
            }
        }
    }
    cursor
}

fn mark(buffer: &mut Buffer, x: u16, y: u16, sign: &str, label: &str, focused: bool) {
    put(buffer, x, y, &format!("{sign} {label}"), if focused { INPUT } else { DIALOG });
}

fn logs(lines: &[String], up: usize, error: Option<&str>, buffer: &mut Buffer, area: Rect) {
    let style = Style::new().fg(Color::Gray).bg(Color::Black);
    fill(buffer, area, style);
    fill(buffer, Rect { height: 1, ..area }, TOP);
    put(buffer, 1, 0, "System Logs (times in UTC)", TOP.add_modifier(Modifier::BOLD));
    let mut top = 1;
    for line in error.map(|e| wrap(e, usize::from(area.width).saturating_sub(2))).unwrap_or_default() {
        put(buffer, 1, top, &line, ALERT);
        top += 1;
    }
    let room = usize::from(area.height.saturating_sub(top + 1));
    let end = lines.len().saturating_sub(up).max(room.min(lines.len()));
    for (line, y) in lines.iter().take(end).skip(end.saturating_sub(room)).zip(top..) {
        put(buffer, 0, y, line, style);
    }
    let bar = BOTTOM;
    fill(buffer, Rect { y: area.bottom().saturating_sub(1), height: 1, ..area }, BOTTOM);
    last_line(buffer, "<Up/Down/PgUp/PgDn> Scroll   <End> Latest", "<Esc> Exit", bar);
}

/// Breaks text into lines of at most `width` characters, at blanks where there are some. What fits stays as it is.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + rest.len() > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        while used + rest.len() > width {
            let tail = rest.split_off(width - used);
            line.extend(rest);
            lines.push(std::mem::take(&mut line));
            (rest, used) = (tail, 0);
        }
        used += rest.len();
        line.extend(rest);
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}
