//! `holdfast volume scrub`.

use holdfast_proto::v1::{
    BeginScrubRequest, GetScrubRequest, Scrub, ScrubCopy, scrub_service_client::ScrubServiceClient,
};

use crate::{
    arguments::Client,
    connection::{connect, refusal, request_id},
    output::{or_dash, print, table, utc},
    size::Size,
};

/// Begins a pass, or only shows how the copies are.
pub(super) async fn run(client: &Client, volume: String, show: bool) -> anyhow::Result<()> {
    let scrub = if show {
        get(client, volume).await?
    } else {
        let mut service = ScrubServiceClient::new(connect(client).await?);
        let request = BeginScrubRequest { request_id: request_id(), volume };
        service.begin_scrub(request).await.map_err(refusal)?.into_inner()
    };
    print(client.output, "Scrub", &scrub, || rows(&scrub, !show))
}

/// How a volume's copies are scrubbed.
pub(super) async fn get(client: &Client, volume: String) -> anyhow::Result<Scrub> {
    let mut service = ScrubServiceClient::new(connect(client).await?);
    Ok(service.get_scrub(GetScrubRequest { volume }).await.map_err(refusal)?.into_inner())
}

/// "running, 40 %, 12 s left".
fn state(copy: &ScrubCopy) -> String {
    if copy.state != "running" {
        return copy.state.clone();
    }
    let percent = u128::from(copy.position_bytes) * 100;
    let percent = percent.checked_div(u128::from(copy.size_bytes)).unwrap_or(0);
    let left = match copy.estimated_seconds_left {
        Some(seconds) => format!(", {seconds} s left"),
        None => String::new(),
    };
    format!("running, {percent} %{left}")
}

/// "2 from node-2, 1 written anew".
fn healed(copy: &ScrubCopy) -> String {
    let from = copy.healed_from.iter().map(|source| match source.node.as_str() {
        "" => format!("{} written anew", source.blocks),
        node => format!("{} from {node}", source.blocks),
    });
    let from = from.collect::<Vec<_>>().join(", ");
    if from.is_empty() { copy.healed_blocks.to_string() } else { from }
}

/// The copies, and what else there is to say of them. `begun`: passes were asked for.
fn rows(scrub: &Scrub, begun: bool) -> String {
    let moment = |time: Option<prost_types::Timestamp>| time.map_or_else(|| or_dash(""), |t| utc(t.seconds));
    let told = scrub.copies.iter().filter(|copy| copy.answered);
    let copies = table(
        ["node", "state", "began", "last ended", "read", "damaged", "healed", "not healed"],
        told.map(|copy| {
            [
                copy.node.clone(),
                state(copy),
                moment(copy.began),
                moment(copy.ended),
                Size(copy.read_bytes).to_string(),
                copy.damaged_blocks.to_string(),
                healed(copy),
                copy.damaged_blocks_left.to_string(),
            ]
        }),
    );
    let reasons = scrub.copies.iter().filter(|copy| !copy.reason.is_empty()).map(|copy| {
        let what = if begun { "not begun" } else { "not known" };
        format!("{what}: the scrub at node {}: {}", copy.node, copy.reason)
    });
    let failed = scrub
        .copies
        .iter()
        .filter(|copy| !copy.failed.is_empty())
        .map(|copy| format!("broken off: the last pass at node {}: {}", copy.node, copy.failed));
    std::iter::once(copies).chain(reasons).chain(failed).collect::<Vec<_>>().join("\n")
}

/// "node-1: idle, 2 damaged, 2 from node-2, 0 not healed; node-2: ...", of copies of which there is a result; empty = of none.
pub(super) fn result(scrub: &Scrub) -> String {
    let has = |copy: &&ScrubCopy| {
        copy.answered && (copy.began.is_some() || copy.ended.is_some() || copy.damaged_blocks > 0)
    };
    let one = |copy: &ScrubCopy| {
        let ended = copy.ended.map_or(String::new(), |time| format!(", last ended {}", utc(time.seconds)));
        let found = match copy.damaged_blocks {
            0 => "no damage".to_owned(),
            damaged => format!(
                "{damaged} damaged blocks, {} healed, {} not healed",
                copy.healed_blocks, copy.damaged_blocks_left
            ),
        };
        format!("{}: {}{ended}: {found}", copy.node, state(copy))
    };
    scrub.copies.iter().filter(has).map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::v1::ScrubSource;

    fn source(node: &str, blocks: u64) -> ScrubSource {
        ScrubSource { node: node.to_owned(), blocks }
    }

    #[test]
    fn a_copy_is_told_in_words() {
        let mut copy = ScrubCopy {
            node: "node-1".to_owned(),
            answered: true,
            state: "running".to_owned(),
            position_bytes: 1 << 20,
            size_bytes: 3 << 20,
            estimated_seconds_left: Some(7),
            ..ScrubCopy::default()
        };
        assert_eq!((state(&copy).as_str(), healed(&copy).as_str()), ("running, 33 %, 7 s left", "0"));
        let scrub = |copy: &ScrubCopy| Scrub { volume: "v".to_owned(), copies: vec![copy.clone()] };
        assert_eq!(result(&scrub(&copy)), "");
        copy.state = "idle".to_owned();
        copy.ended = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
        assert_eq!(result(&scrub(&copy)), "node-1: idle, last ended 1970-01-01 00:00:00Z: no damage");
        (copy.damaged_blocks, copy.healed_blocks, copy.damaged_blocks_left) = (4, 3, 1);
        copy.healed_from = vec![source("node-2", 2), source("", 1)];
        assert_eq!(healed(&copy), "2 from node-2, 1 written anew");
        assert!(result(&scrub(&copy)).ends_with(": 4 damaged blocks, 3 healed, 1 not healed"));
        let silent =
            ScrubCopy { node: "node-2".to_owned(), reason: "it is away".to_owned(), ..ScrubCopy::default() };
        assert_eq!(result(&scrub(&silent)), "");
        let shown = rows(&scrub(&silent), true);
        assert!(shown.ends_with("not begun: the scrub at node node-2: it is away"), "{shown}");
    }
}
