//! A Receptor plugin whose action `execute` greets everybody in `{"names": ["…"]}`.
//!
//! Messages are JSON, one a line: jobs come on stdin, results go to stdout. stderr goes to the journal of the node.

use std::error::Error;
use std::io::{self, BufRead as _, Write as _};

use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    // The first line says who this is and what it can do. Reading comes after it.
    say(&json!({
        "type": "hello", "protocol": 1, "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION"),
        "features": ["file"],
        "actions": {"execute": {"about": "Greets", "example": {"names": ["world"]}}},
    }))?;
    for line in io::stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line?)?;
        // The daemon's hello, and whatever comes in later versions, are passed over.
        if message["type"] == "execute"
            && let Err(error) = execute(&message)
        {
            let error = json!({"code": "invalid-payload", "message": error.to_string()});
            say(&json!({"type": "error", "id": message["id"], "error": error}))?;
        }
    }
    Ok(())
}

fn execute(job: &Value) -> Result<(), Box<dyn Error>> {
    // A large payload comes in a file.
    let payload: Value = match job["payload_file"].as_str() {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => job["payload"].clone(),
    };
    let names = payload["names"].as_array().ok_or("\"names\" is missing")?;
    for (number, name) in names.iter().enumerate() {
        let name = name.as_str().ok_or("a name is no text")?;
        let greeting = json!({"greeting": format!("hello {name}")});
        say(&json!({"type": "data", "id": job["id"], "data": greeting}))?;
        say(&json!({"type": "status", "id": job["id"], "progress": [number + 1, names.len()]}))?;
    }
    say(&json!({"type": "done", "id": job["id"], "code": 0}))?;
    Ok(())
}

fn say(message: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{message}")?;
    stdout.flush()
}
