//! Printing: tables for people, JSON and YAML (the contracts' canonical JSON mapping) for programs.

use std::sync::OnceLock;

use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use crate::arguments::Format;

/// Prints `message` (of the contract type `holdfast.v1.NAME`) as a program wants it, or what `table` makes of it.
pub(crate) fn print<M: Message>(
    format: Format,
    name: &str,
    message: &M,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(&to_json(name, message)?)?,
        Format::Yaml => serde_saphyr::to_string(&to_json(name, message)?)?,
    };
    println!("{}", text.trim_end());
    Ok(())
}

/// One line per message, for streams.
pub(crate) fn print_line<M: Message>(
    format: Format,
    name: &str,
    message: &M,
    line: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Table => println!("{}", line()),
        Format::Json => println!("{}", serde_json::to_string(&to_json(name, message)?)?),
        Format::Yaml => print!("---\n{}", serde_saphyr::to_string(&to_json(name, message)?)?),
    }
    Ok(())
}

fn to_json<M: Message>(name: &str, message: &M) -> anyhow::Result<serde_json::Value> {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    if POOL.get().is_none() {
        let pool = DescriptorPool::decode(holdfast_proto::FILE_DESCRIPTOR_SET)
            .context("the contracts' descriptors")?;
        let _ = POOL.set(pool);
    }
    let descriptor = POOL
        .get()
        .and_then(|pool| pool.get_message_by_name(&format!("holdfast.v1.{name}")))
        .with_context(|| format!("no contract type {name}"))?;
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message).context("re-reading a message")?;
    // Programs want every field, set or not, and 64-bit numbers as strings as the canonical mapping says.
    let options = SerializeOptions::new().skip_default_fields(false).use_proto_field_name(true);
    Ok(dynamic.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// A table with a header; just the header's names when there is no row.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(header.map(str::to_uppercase).to_vec());
    for row in rows {
        table.add_row(row.to_vec());
    }
    table.to_string()
}

/// "name  value" lines of one resource.
pub(crate) fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// "-" where there is nothing.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// A moment, in seconds since 1970, as "2026-11-22 17:30:00Z" (proleptic Gregorian calendar).
pub(crate) fn utc(unix_seconds: i64) -> String {
    let (days, seconds) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
    // Days since 1 March of year 0, so that a leap day is the last of its year.
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era.saturating_mul(400) + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::v1;

    #[test]
    fn json_is_the_contracts_mapping() -> anyhow::Result<()> {
        let mapping = v1::Mapping { volume: "db1".into(), host: "h".into(), lun: 3, ..Default::default() };
        let json = to_json("Mapping", &mapping)?;
        assert_eq!(
            json,
            serde_json::json!({"volume": "db1", "host": "h", "lun": 3, "read_only": false, "group": ""})
        );
        Ok(())
    }

    #[test]
    fn moments_are_shown_in_utc() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_795_368_599, "2026-11-22 17:29:59Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), shown);
        }
    }

    #[test]
    fn an_unknown_type_is_an_error_not_a_panic() {
        assert!(to_json("Nonsense", &v1::GetClusterRequest {}).is_err());
    }
}
