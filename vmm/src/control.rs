//! The control socket: the words of `keelson-vmm-control`, turned into orders to the machine.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};

use keelson_vmm_control::{Answer, Event, Refusal, Request};
use keelson_wire::{Listener, Served, serve};

use crate::machine::Order;

/// Serves the socket on a thread of its own. Whoever can connect may speak: the socket's mode and directory are its guard.
pub fn start(socket: OwnedFd, orders: Sender<Order>) -> std::io::Result<()> {
    let listener = Listener::from_fd(socket);
    std::thread::Builder::new().name("control".into()).stack_size(128 << 10).spawn(move || {
        let failed = serve(&listener, |_| true, move |request, fds, _| handle(request, fds, &orders));
        log::error!("the control socket takes no further connections: {failed}");
    })?;
    Ok(())
}

fn handle(request: Request, fds: Vec<OwnedFd>, orders: &Sender<Order>) -> Served<Answer, Refusal, Event> {
    let orders = orders.clone();
    match request {
        // The order goes out after the answer did: else the process could end before the answer is on its way.
        Request::Kill => Served::Stream(Answer::Done, Box::new(move |_| drop(orders.send(Order::Kill)))),
        Request::Suspend { set } => {
            let Ok([state, memory]) = <[OwnedFd; 2]>::try_from(fds) else {
                let why = "suspending needs two descriptors: the state file and the memory file";
                return Served::Refused(Refusal::Failed(why.into()));
            };
            let (state, memory) = (state.into(), memory.into());
            ask(&orders, |reply| Order::Suspend { set, state, memory, reply })
        }
        Request::Watch => {
            Served::Stream(Answer::Done, Box::new(move |stream| drop(orders.send(Order::Watch(stream)))))
        }
        request => ask(&orders, |reply| Order::Request(request, reply)),
    }
}

/// Gives an order and waits for its answer.
fn ask(
    orders: &Sender<Order>,
    order: impl FnOnce(SyncSender<Result<Answer, Refusal>>) -> Order,
) -> Served<Answer, Refusal, Event> {
    let ended = || Served::Refused(Refusal::Failed("the machine has ended".into()));
    let (reply, answer) = sync_channel(1);
    if orders.send(order(reply)).is_err() {
        return ended();
    }
    match answer.recv() {
        Ok(Ok(answer)) => Served::Answer(answer, vec![]),
        Ok(Err(refusal)) => Served::Refused(refusal),
        Err(_) => ended(),
    }
}
