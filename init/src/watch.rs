//! Who watches, and what they have not read yet. A watcher that does not keep up is dropped: init waits for nobody.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use keelson_init_control::Event;

/// What a watcher may leave unread.
const UNREAD_MAX: usize = 1024;
/// How many may watch.
const WATCHERS_MAX: usize = 64;

/// The watchers.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Vec<SyncSender<Event>>);

impl Watchers {
    /// A new one, which gets `first` before all else; `None` when there are too many.
    pub(crate) fn add(&mut self, first: impl IntoIterator<Item = Event>) -> Option<Receiver<Event>> {
        if self.0.len() >= WATCHERS_MAX {
            return None;
        }
        let (sender, receiver) = sync_channel(UNREAD_MAX);
        for event in first {
            sender.try_send(event).ok()?;
        }
        self.0.push(sender);
        Some(receiver)
    }

    /// Tells all.
    pub(crate) fn tell(&mut self, event: &Event) {
        self.0.retain(|watcher| watcher.try_send(event.clone()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_init_control::PowerAction;

    #[test]
    fn one_that_reads_nothing_is_dropped_and_one_that_left_too() {
        let event = Event::PoweringDown(PowerAction::Reboot);
        let mut watchers = Watchers::default();
        let lazy = watchers.add([]).unwrap();
        drop(watchers.add([event.clone()]).unwrap());
        for _ in 0..UNREAD_MAX {
            watchers.tell(&event);
        }
        assert_eq!(watchers.0.len(), 1);
        watchers.tell(&event);
        assert!(watchers.0.is_empty());
        assert_eq!(lazy.iter().count(), UNREAD_MAX);
    }

    #[test]
    fn there_is_a_limit() {
        let mut watchers = Watchers::default();
        let kept: Vec<_> = (0..WATCHERS_MAX).map(|_| watchers.add([]).unwrap()).collect();
        assert!(watchers.add([]).is_none());
        assert_eq!(kept.len(), WATCHERS_MAX);
    }
}
