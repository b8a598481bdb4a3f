//! netd as far as the host agent knows it: a configuration with a revision, taps that are only counted.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use keelson_netcfg_control::{
    AdapterStatus, AddressOrigin, Answer, Event, MacAddr, NetworkConfig, NetworkStatus, NicStatus, Problem,
    Refusal, Request, SwitchStatus,
};
use keelson_wire::{Listener, Served};
use uuid::Uuid;

pub(crate) struct FakeNetd {
    state: Mutex<State>,
}

struct State {
    config: NetworkConfig,
    revision: u64,
    taps: BTreeMap<(Uuid, u32), String>,
    restarts: u32,
}

impl FakeNetd {
    pub(crate) fn start(run: &Path) -> Arc<Self> {
        let state =
            State { config: NetworkConfig::default(), revision: 1, taps: BTreeMap::new(), restarts: 0 };
        let netd = Arc::new(Self { state: Mutex::new(state) });
        let listener = Listener::bind(run.join("netd.sock")).unwrap();
        let serving = Arc::clone(&netd);
        std::thread::spawn(move || {
            keelson_wire::serve(&listener, |_| true, move |request, _, _| serving.handle(request))
        });
        netd
    }

    fn handle(&self, request: Request) -> Served<Answer, Refusal, Event> {
        let mut state = self.state.lock().unwrap();
        match request {
            Request::Get => Served::Answer(
                Answer::Network { config: Box::new(state.config.clone()), status: Box::new(state.status()) },
                vec![],
            ),
            Request::Set { config, revision } => {
                if revision.is_some_and(|r| r != state.revision) {
                    return Served::Refused(Refusal::Stale {
                        based_on: revision.unwrap_or(0),
                        now: state.revision,
                    });
                }
                if let Err(e) = config.validate() {
                    return Served::Refused(Refusal::BadConfig(e));
                }
                state.config = *config;
                state.revision += 1;
                Served::Answer(Answer::Done, vec![])
            }
            Request::Restart => {
                state.restarts += 1;
                Served::Answer(Answer::Done, vec![])
            }
            Request::OpenTap { vm, index, port_group } => {
                if !state.config.port_groups.iter().any(|g| g.name == port_group) {
                    let existing = state.config.port_groups.iter().map(|g| g.name.clone()).collect();
                    return Served::Refused(Refusal::NoSuchPortGroup { name: port_group, existing });
                }
                state.taps.insert((vm, index), port_group);
                let tap: OwnedFd = tempfile::tempfile().unwrap().into();
                Served::Answer(Answer::Tap { name: "vmtap0".into() }, vec![tap])
            }
            Request::CloseTaps { vm } => {
                state.taps.retain(|(of, _), _| *of != vm);
                Served::Answer(Answer::Done, vec![])
            }
            Request::Watch => {
                let first = Event::Changed {
                    config: Box::new(state.config.clone()),
                    status: Box::new(state.status()),
                };
                Served::Stream(
                    Answer::Done,
                    Box::new(move |stream| {
                        let _ = stream.send(&first);
                        std::thread::park();
                    }),
                )
            }
        }
    }

    pub(crate) fn taps(&self) -> Vec<String> {
        self.state.lock().unwrap().taps.values().cloned().collect()
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        self.state.lock().unwrap().config.clone()
    }

    pub(crate) fn restarts(&self) -> u32 {
        self.state.lock().unwrap().restarts
    }

    pub(crate) fn remove_port_group(&self, name: &str) {
        self.state.lock().unwrap().config.port_groups.retain(|g| g.name != name);
    }
}

impl State {
    fn status(&self) -> NetworkStatus {
        NetworkStatus {
            revision: self.revision,
            nics: vec![NicStatus {
                name: "vmnic0".into(),
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                driver: "test".into(),
                pci: None,
                link: true,
                speed_mbps: Some(1000),
                vswitch: Some("vSwitch0".into()),
            }],
            vswitches: vec![SwitchStatus {
                name: "vSwitch0".into(),
                uplinks: vec!["vmnic0".into()],
                mtu: 1500,
                link: true,
            }],
            vmkernel_adapters: vec![AdapterStatus {
                name: "vmk0".into(),
                ifindex: Some(3),
                mac: None,
                addresses: vec!["192.0.2.10/24".parse().unwrap()],
                origin: AddressOrigin::Dhcp,
                gateway: None,
                dhcp: None,
            }],
            problems: vec![Problem {
                code: "no-link".into(),
                message: "vmnic1 has no link".into(),
                remedy: "plug it in".into(),
            }],
            ..NetworkStatus::default()
        }
    }
}
