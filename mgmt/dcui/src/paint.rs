//! Which bytes make a terminal show a buffer? ANSI sequences that a VT220, xterm and the Linux console share, in 16 colours.

use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Position;
use ratatui::style::{Color, Modifier};

/// Shows `next` where `before` is shown now; without `before`, whatever is there.
pub(crate) fn paint(before: Option<&Buffer>, next: &Buffer, cursor: Option<Position>, out: &mut Vec<u8>) {
    let before = before.filter(|b| b.area == next.area);
    // No automatic wrap while drawing: the last column of the last line must not scroll the screen.
    out.extend_from_slice(b"\x1b[?25l\x1b[?7l");
    let blank;
    let before = match before {
        Some(before) => before,
        None => {
            // UTF-8, the whole screen scrolls, no attributes; what is left beside and below the frame by others goes.
            out.extend_from_slice(b"\x1b%G\x1b[r\x1b[0m");
            for row in 1..next.area.height {
                text(out, &format!("\x1b[{row};1H\x1b[2K"));
            }
            text(out, &format!("\x1b[{};1H\x1b[J", next.area.height));
            // Differs from every cell that is ever drawn, so that all of them are.
            let mut other = Cell::new("?");
            other.modifier = Modifier::HIDDEN;
            blank = Buffer::filled(next.area, other);
            &blank
        }
    };
    let mut style = None;
    let mut at = None;
    for (x, y, cell) in before.diff(next) {
        if at != Some((x, y)) {
            text(out, &format!("\x1b[{};{}H", y + 1, x + 1));
        }
        let this = (cell.fg, cell.bg, cell.modifier);
        if style != Some(this) {
            style = Some(this);
            text(out, &sgr(cell));
        }
        text(out, cell.symbol());
        // After a wide character the cursor's place is not this column's neighbour: say it again.
        at = (cell.symbol().is_ascii()).then_some((x + 1, y));
    }
    out.extend_from_slice(b"\x1b[0m\x1b[?7h");
    if let Some(cursor) = cursor {
        text(out, &format!("\x1b[{};{}H\x1b[?25h", cursor.y + 1, cursor.x + 1));
    }
}

/// Leaves the terminal empty and as it should be for others.
pub(crate) fn leave(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\x1b[0m\x1b[?7h\x1b[2J\x1b[H\x1b[?25h");
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn sgr(cell: &Cell) -> String {
    let mut codes = String::from("\x1b[0");
    if cell.modifier.contains(Modifier::BOLD) {
        codes.push_str(";1");
    }
    if cell.modifier.contains(Modifier::REVERSED) {
        codes.push_str(";7");
    }
    if let Some(n) = colour(cell.fg) {
        codes.push_str(&format!(";{}", if n < 8 { 30 + n } else { 82 + n }));
    }
    if let Some(n) = colour(cell.bg) {
        codes.push_str(&format!(";{}", if n < 8 { 40 + n } else { 92 + n }));
    }
    codes.push('m');
    codes
}

/// The number of one of the 16 colours.
fn colour(colour: Color) -> Option<u8> {
    Some(match colour {
        Color::Black => 0,
        Color::Red => 1,
        Color::Green => 2,
        Color::Yellow => 3,
        Color::Blue => 4,
        Color::Magenta => 5,
        Color::Cyan => 6,
        Color::Gray => 7,
        Color::DarkGray => 8,
        Color::LightRed => 9,
        Color::LightGreen => 10,
        Color::LightYellow => 11,
        Color::LightBlue => 12,
        Color::LightMagenta => 13,
        Color::LightCyan => 14,
        Color::White => 15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    fn screen(lines: &[String]) -> Buffer {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 24));
        for (y, line) in lines.iter().enumerate().take(24) {
            let style = if y % 2 == 0 {
                Style::new().fg(Color::White).bg(Color::Blue)
            } else {
                Style::new().fg(Color::Black).bg(Color::Cyan)
            };
            buffer.set_stringn(0, u16::try_from(y).unwrap(), line, 80, style);
        }
        buffer
    }

    fn terminal(rows: u16, columns: u16) -> vt100::Parser {
        vt100::Parser::new(rows.try_into().unwrap(), columns.try_into().unwrap(), 0)
    }

    fn shown(parser: &vt100::Parser) -> Vec<String> {
        parser.screen().rows(0, 80).map(|r| r.trim_end().to_owned()).collect()
    }

    fn written(buffer: &Buffer) -> Vec<String> {
        (0..24u16)
            .map(|y| (0..80u16).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned())
            .collect()
    }

    proptest! {
        #[test]
        fn a_terminal_shows_what_was_drawn(first in prop::collection::vec("[ -~]{0,90}", 24), second in prop::collection::vec("[ -~]{0,90}", 24)) {
            let mut parser = terminal(24, 80);
            parser.process(b"kernel: [    1.0] noise\r\n\x1b[5;3H\x1b[41mleft over");
            let (a, b) = (screen(&first), screen(&second));
            let mut out = Vec::new();
            paint(None, &a, None, &mut out);
            parser.process(&out);
            prop_assert_eq!(shown(&parser), written(&a));
            out.clear();
            paint(Some(&a), &b, Some(Position::new(3, 4)), &mut out);
            parser.process(&out);
            prop_assert_eq!(shown(&parser), written(&b));
            prop_assert_eq!(parser.screen().cursor_position(), (4, 3));
        }
    }

    #[test]
    fn a_full_paint_clears_what_lies_beside_and_below() {
        let mut parser = terminal(40, 100);
        for _ in 0..50 {
            parser.process("x".repeat(100).as_bytes());
            parser.process(b"\r\n");
        }
        let mut out = Vec::new();
        paint(None, &screen(&["hello".into()]), None, &mut out);
        parser.process(&out);
        assert!(!parser.screen().contents().contains('x'), "{}", parser.screen().contents());
        assert!(parser.screen().contents().starts_with("hello"));
    }

    #[test]
    fn nothing_new_is_nothing_drawn() {
        let buffer = screen(&["a".into(), "b".into()]);
        let mut out = Vec::new();
        paint(Some(&buffer), &buffer, None, &mut out);
        assert!(out.len() < 32, "{out:?}");
    }
}
