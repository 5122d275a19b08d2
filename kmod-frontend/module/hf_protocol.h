/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR Apache-2.0 */
/*
 * /dev/holdfast: what the data node and the kernel module say to each other. kmod-frontend/PROTOCOL.md says it in words.
 *
 * One write(2) is one message to the kernel, one read(2) one message from it. Numbers are in the machine's byte order, except
 * within an image (big endian, as on the interconnect). Reserved bytes are zero. Everything is bounded below.
 */
#ifndef HF_PROTOCOL_H
#define HF_PROTOCOL_H

#include <linux/types.h>

#define HFK_MAGIC 0x434b4648u /* "HFKC" */
#define HFK_VERSION 1

/* Longest message either way, bytes. */
#define HFK_MESSAGE_LEN_MAX (4u << 20)
/* Data of a command that is asked for, either way. */
#define HFK_DATA_LEN_MAX (1u << 20)
/* A lease may reach this far into the future, ns. */
#define HFK_LEASE_NS_MAX 60000000000ull
/* Commands waiting for the data node. */
#define HFK_ASKED_MAX 4096

enum hfk_kind {
	/* To the kernel. */
	HFK_HELLO = 1,	   /* nothing follows; first message of an open file: every gate is closed and drained */
	HFK_INSTALL = 2,   /* volume, then the image */
	HFK_LEASE = 3,	   /* struct hfk_lease */
	HFK_SERVE = 4,	   /* volume; id = 1 open, 0 close: closing answers after all I/O has ended */
	HFK_ATTENTION = 5, /* volume, struct hfk_attention, TransportID if there is one */
	HFK_VERDICT = 6,   /* struct hfk_verdict, data */
	HFK_PORT = 7,	   /* struct hfk_port */
	/* From the kernel. */
	HFK_COMMAND = 64, /* struct hfk_command, TransportID, data from the initiator */
	HFK_DRAINED = 65, /* struct hfk_drained */
};

struct hfk_header {
	__u32 magic;
	__u16 version;
	__u16 kind;
	/* Of the whole message, bytes. */
	__u32 len;
	__u32 reserved;
	/* Names a command that was asked for; its answer carries the same. */
	__u64 id;
	__u8 volume[16];
};

struct hfk_lease {
	/* CLOCK_BOOTTIME, ns; 0 closes at once. */
	__u64 until_boot_ns;
};

#define HFK_NEXUS_ALL 0
#define HFK_NEXUS_ONLY 1
#define HFK_NEXUS_EXCEPT 2

struct hfk_attention {
	/* Number of the event; grows. */
	__u64 event;
	/* ASC << 8 | ASCQ. */
	__u16 additional;
	/* HFK_NEXUS_... */
	__u16 scope;
	__u16 relative_port;
	__u16 transport_id_len;
};

/* The cluster's number of a target port of this node. */
struct hfk_port {
	/* As in configfs, with a zero behind. */
	char fabric[16];
	char wwn[224];
	__u16 tag;
	__u16 relative_port;
	__u32 reserved;
};

struct hfk_verdict {
	__u8 status;
	__u8 sense_len;
	__u16 reserved;
	__u32 data_len;
	__u8 sense[64];
};

struct hfk_command {
	__u8 cdb[32];
	__u16 cdb_len;
	__u16 relative_port;
	__u16 transport_id_len;
	/* SAM task attribute as LIO codes it. */
	__u16 attribute;
	/* Most bytes the initiator takes. */
	__u32 data_in_len;
	/* Bytes from the initiator that follow. */
	__u32 data_out_len;
};

struct hfk_drained {
	/* Counts the images of the unit in the order of HFK_INSTALL, from 1; begins anew with the unit. */
	__u64 serial;
	/* Version of the reservation in that image. */
	__u64 version;
};

#endif
