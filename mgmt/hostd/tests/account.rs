//! The account of a real hostd: before a password is set, with one, sessions, tokens, wrong credentials.

mod host;

use std::time::{Duration, Instant};

use host::{Host, PASSWORD};
use serde_json::json;
use sha2::{Digest, Sha256};

#[test]
fn before_a_password_is_set_the_network_gets_identity_and_health_only() {
    let host = Host::start();
    let mut network = host.network();
    assert_eq!(network.get("/healthz").value(), json!({"status": "ok"}));
    network.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(network.answer().status, 200);
    let identity = network.get("/identity").value();
    let fingerprint: Vec<String> =
        Sha256::digest(host.certificate()).iter().map(|b| format!("{b:02X}")).collect();
    assert_eq!(
        (&identity["password_set"], &identity["certificate_sha256"]),
        (&json!(false), &json!(fingerprint.join(":")))
    );
    for path in ["/host", "/vms", "/tokens", "/nowhere", "/datastores/datastore1/files/x"] {
        let answer = network.get(path);
        assert_eq!((answer.status, answer.fault().as_str()), (403, "PasswordNotSet"), "{path}");
        assert!(answer.value()["remedy"].as_str().unwrap().contains("F2"));
    }
    let login = json!({"username": "root", "password": ""});
    assert_eq!(host.network().json("POST", "/sessions", &login).fault(), "PasswordNotSet");
    assert_eq!(
        host.network().json("PUT", "/account/password", &json!({"new": PASSWORD})).fault(),
        "PasswordNotSet"
    );
    assert_eq!(host.local().json("POST", "/account/verify", &login).status, 401);
    assert_eq!(host.network().get("/identity").value()["password_set"], false);
}

#[test]
fn the_life_of_a_password() {
    let mut host = Host::start();
    let mut local = host.local();
    for (new, field) in [("short", "new"), (&"x".repeat(2000), "new"), ("bell \u{7} inside", "new")] {
        let answer = local.json("PUT", "/account/password", &json!({"new": new}));
        assert_eq!((answer.status, answer.value()["field"].as_str()), (400, Some(field)), "{new}");
    }
    assert_eq!(local.json("PUT", "/account/password", &json!({"new": PASSWORD})).status, 204);
    // From now on the present one is asked for, here too.
    assert_eq!(
        local.json("PUT", "/account/password", &json!({"new": "another password"})).value()["field"],
        "current"
    );
    let wrong =
        local.json("PUT", "/account/password", &json!({"current": "wrong", "new": "another password"}));
    assert_eq!((wrong.status, wrong.value()["field"].as_str()), (400, Some("current")));
    assert_eq!(
        local.json("POST", "/account/verify", &json!({"username": "root", "password": PASSWORD})).status,
        204
    );
    assert_eq!(
        local.json("POST", "/account/verify", &json!({"username": "root", "password": "wrong"})).status,
        401
    );

    let (mine, other) = (host.log_in(PASSWORD), host.log_in(PASSWORD));
    let mut network = host.network().with(&mine);
    let issued = network.json("POST", "/tokens", &json!({"name": "backup"})).value();
    assert_eq!(
        network
            .json("PUT", "/account/password", &json!({"current": PASSWORD, "new": "another password"}))
            .status,
        204
    );
    assert_eq!(network.get("/tokens").status, 200, "the session that asked stays");
    assert_eq!(host.network().with(&other).get("/tokens").status, 401, "the others end");
    assert_eq!(network.bare("DELETE", "/sessions/current").status, 204);
    assert_eq!(network.get("/tokens").status, 401);

    // Killed and started again: the password, the token and the identity stay, sessions do not.
    let (before, again) = (host.network().get("/identity").value(), host.log_in("another password"));
    host.restart();
    assert_eq!(host.network().get("/identity").value(), before);
    assert_eq!(host.network().with(&again).get("/tokens").status, 401);
    let token = issued["token"].as_str().unwrap();
    let mut network = host.network().with(token);
    let listed = network.get("/tokens").value();
    assert_eq!((listed[0]["name"].as_str(), listed[0].get("token")), (Some("backup"), None));
    assert_eq!(network.bare("DELETE", "/sessions/current").status, 404, "an issued token is no session");
    assert_eq!(network.bare("DELETE", &format!("/tokens/{}", issued["id"].as_str().unwrap())).status, 204);
    assert_eq!(network.get("/tokens").status, 401);
    assert_eq!(
        host.network().json("POST", "/sessions", &json!({"username": "root", "password": PASSWORD})).status,
        401
    );
    host.log_in("another password");
}

#[test]
fn wrong_credentials_are_slowed_and_told_nothing() {
    let (host, token) = Host::with_session();
    let begun = Instant::now();
    let mut answers = Vec::new();
    for (username, password) in [("root", "wrong"), ("admin", PASSWORD), ("admin", "wrong"), ("", "")] {
        let answer =
            host.network().json("POST", "/sessions", &json!({"username": username, "password": password}));
        assert_eq!((answer.status, answer.field("www-authenticate")), (401, Some("Bearer")));
        answers.push(answer.value());
    }
    assert!(answers.iter().all(|a| *a == answers[0]), "{answers:?}");
    // 0 + 250 + 500 + 1000 ms.
    assert!(begun.elapsed() >= Duration::from_millis(1750), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let mut tokenless = host.network();
    assert_eq!(tokenless.get("/host").value(), answers[0], "a missing token is told as little");
    assert_eq!(host.network().with("keelson-session-0").get("/host").status, 401);
    assert!(begun.elapsed() >= Duration::from_millis(750), "{:?}", begun.elapsed());
    // A right token is not slowed by what others did from there: each of the five would wait a second, by now.
    let begun = Instant::now();
    let mut right = host.network().with(&token);
    for _ in 0..5 {
        assert_eq!(right.get("/tokens").status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // The local socket counts apart, and the right password works after the wait.
    assert_eq!(
        host.local()
            .json("POST", "/account/verify", &json!({"username": "root", "password": PASSWORD}))
            .status,
        204
    );
    host.log_in(PASSWORD);
}

#[test]
fn what_is_local_stays_local() {
    let (host, token) = Host::with_session();
    let login = json!({"username": "root", "password": PASSWORD});
    assert_eq!(host.network().with(&token).json("POST", "/account/verify", &login).fault(), "NoPermission");
    assert_eq!(host.network().json("POST", "/account/verify", &login).status, 401);
}

#[test]
fn the_local_socket_refuses_other_users() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: only root can try as another user");
    }
    let host = Host::start();
    // Even if the modes were lost, the user decides.
    let socket = host.path("run/hostd.sock");
    for path in [host.path(""), host.path("run"), socket.clone()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let output = std::process::Command::new("curl")
        .args(["-sS", "--unix-socket"])
        .arg(&socket)
        .arg("http://host/api/v1/host")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("NoPermission"), "{text} {}", String::from_utf8_lossy(&output.stderr));
}
